/*
 * Faults of a disk, inside a process that was started with this library before its own. The file
 * that LOCKSTEP_TEST_FAULT names holds a rule, `CALL PART ACTION NUMBER`: calls of that kind
 * ("open", "write", "sync", "unlink" or "rename") on files with PART in their path
 *   fail    once, with EIO; the rule is gone then (Linux reports a lost page once, too)
 *   nth     as fail, but the NUMBER-th of them
 *   skip    every time: they report success and do nothing
 *   delay   every time, by NUMBER milliseconds, and are done then
 *   refuse  every time, with NUMBER as the error
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum action { PASS, FAIL, SKIP };

static enum action gone(const char *rule_path) {
    char done[PATH_MAX + 8];
    snprintf(done, sizeof done, "%s.done", rule_path);
    if (rename(rule_path, done) != 0) return PASS;
    errno = EIO;
    return FAIL;
}

static enum action act(const char *rule_path, const char *action, long number) {
    static long calls = 0;
    struct timespec delay = {number / 1000, number % 1000 * 1000000};
    if (strcmp(action, "skip") == 0) return SKIP;
    if (strcmp(action, "refuse") == 0) {
        errno = (int)number;
        return FAIL;
    }
    if (strcmp(action, "delay") == 0) {
        nanosleep(&delay, NULL);
        return PASS;
    }
    if (strcmp(action, "nth") == 0 && __sync_add_and_fetch(&calls, 1) != number) return PASS;
    return gone(rule_path);
}

static enum action decide(const char *call, const char *path) {
    char rule[256], calls[16], part[128], action[16];
    long number = 0;
    const char *rule_path = getenv("LOCKSTEP_TEST_FAULT");
    int file = rule_path ? open(rule_path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return PASS;
    ssize_t length = read(file, rule, sizeof rule - 1);
    close(file);
    if (length <= 0) return PASS;
    rule[length] = 0;
    if (sscanf(rule, "%15s %127s %15s %ld", calls, part, action, &number) != 4) return PASS;
    if (strcmp(calls, call) != 0) return PASS;
    return strstr(path, part) ? act(rule_path, action, number) : PASS;
}

static enum action fault_at(const char *call, const char *path) {
    int before = errno;
    enum action action = decide(call, path);
    if (action != FAIL) errno = before;
    return action;
}

static enum action fault(const char *call, int fd) {
    char link[64], path[PATH_MAX];
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length <= 0) return PASS;
    path[length] = 0;
    return fault_at(call, path);
}

#define WITH_FAULTS(call, fd, skipped, done) WITH_ACTION(fault(call, fd), skipped, done)

#define WITH_ACTION(action, skipped, done)     \
    switch (action) {                          \
    case FAIL: return -1;                      \
    case SKIP: return skipped;                 \
    default: return done;                      \
    }

int fsync(int fd) { WITH_FAULTS("sync", fd, 0, syscall(SYS_fsync, fd)) }

int fdatasync(int fd) { WITH_FAULTS("sync", fd, 0, syscall(SYS_fdatasync, fd)) }

ssize_t write(int fd, const void *bytes, size_t count) {
    WITH_FAULTS("write", fd, (ssize_t)count, syscall(SYS_write, fd, bytes, count))
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset) {
    WITH_FAULTS("write", fd, (ssize_t)count, syscall(SYS_pwrite64, fd, bytes, count, offset))
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    WITH_FAULTS("write", fd, -1, syscall(SYS_writev, fd, parts, count))
}

/* The library opens its own rule by `open`, and what is written in Rust calls this one. */
int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    WITH_ACTION(fault_at("open", path), -1, (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode))
}

int unlink(const char *path) {
    WITH_ACTION(fault_at("unlink", path), 0, (int)syscall(SYS_unlink, path))
}

int rename(const char *from, const char *to) {
    /* The library gives its own rules another name. */
    const char *rule_path = getenv("LOCKSTEP_TEST_FAULT");
    if (rule_path && strcmp(from, rule_path) == 0) return (int)syscall(SYS_rename, from, to);
    WITH_ACTION(fault_at("rename", to), 0, (int)syscall(SYS_rename, from, to))
}

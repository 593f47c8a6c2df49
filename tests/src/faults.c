/*
 * Faults of a disk, inside a process that was started with this library before its own. The file
 * that LOCKSTEP_TEST_FAULT names holds a rule, `CALL PART ACTION MILLISECONDS`: calls of that kind
 * ("write" or "sync") on files with PART in their path
 *   fail    once, with EIO; the rule is gone then (Linux reports a lost page once, too)
 *   skip    every time: they report success and do nothing
 *   delay   every time, by so many milliseconds, and are done then
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum action { PASS, FAIL, SKIP };

static enum action act(const char *rule_path, const char *action, long milliseconds) {
    char done[PATH_MAX + 8];
    struct timespec delay = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    if (strcmp(action, "skip") == 0) return SKIP;
    if (strcmp(action, "delay") == 0) {
        nanosleep(&delay, NULL);
        return PASS;
    }
    snprintf(done, sizeof done, "%s.done", rule_path);
    return rename(rule_path, done) == 0 ? FAIL : PASS;
}

static enum action decide(const char *call, int fd) {
    char rule[256], calls[16], part[128], action[16], link[64], path[PATH_MAX];
    long milliseconds = 0;
    const char *rule_path = getenv("LOCKSTEP_TEST_FAULT");
    int file = rule_path ? open(rule_path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return PASS;
    ssize_t length = read(file, rule, sizeof rule - 1);
    close(file);
    if (length <= 0) return PASS;
    rule[length] = 0;
    if (sscanf(rule, "%15s %127s %15s %ld", calls, part, action, &milliseconds) != 4) return PASS;
    if (strcmp(calls, call) != 0) return PASS;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return PASS;
    path[length] = 0;
    return strstr(path, part) ? act(rule_path, action, milliseconds) : PASS;
}

static enum action fault(const char *call, int fd) {
    int before = errno;
    enum action action = decide(call, fd);
    errno = action == FAIL ? EIO : before;
    return action;
}

#define WITH_FAULTS(call, fd, skipped, done)   \
    switch (fault(call, fd)) {                 \
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

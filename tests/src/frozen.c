/* Stops one thread of another process, as a debugger would (ptrace(2)), and lets it go on at the
   end of standard input. It prints a line once the thread stands still. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

static void check(int good, const char *what) {
    if (good) return;
    perror(what);
    exit(1);
}

int main(int count, char **words) {
    if (count != 2) return 2;
    pid_t thread = (pid_t)atoi(words[1]);
    check(ptrace(PTRACE_SEIZE, thread, 0, 0) == 0, "the thread cannot be traced");
    check(ptrace(PTRACE_INTERRUPT, thread, 0, 0) == 0, "the thread cannot be stopped");
    check(waitpid(thread, NULL, __WALL) == thread, "the thread did not stop");
    puts("stopped");
    fflush(stdout);
    while (getchar() != EOF) {
    }
    /* Its process may have been killed meanwhile. */
    ptrace(PTRACE_DETACH, thread, 0, 0);
    return 0;
}

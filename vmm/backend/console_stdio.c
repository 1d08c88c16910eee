/* The console on the process's own terminal, in raw mode; the terminal's mode is restored on every way out.
 *
 * Ways out: console_close(), exit(3) (atexit), and deadly signals, whose handler restores the mode and lets the signal kill the
 * process as it would have.  SIGINT, SIGTERM and SIGHUP come through the machine's event loop and end it in order. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "vmm/backend/console_priv.h"

static struct termios saved_mode;
static volatile sig_atomic_t mode_changed;
static struct console *owner; /* the one console that has the terminal */

/* Async-signal-safe. */
static void restore_mode(void) {
  if (!mode_changed) return;
  mode_changed = 0;
  tcsetattr(STDIN_FILENO, TCSANOW, &saved_mode);
}

static const int deadly[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGQUIT, SIGSYS, SIGTRAP};

static void on_deadly_signal(int sig) {
  restore_mode();
  signal(sig, SIG_DFL);
  raise(sig);
}

/* Signals that somebody has a handler for already are left alone. */
void console_guard_terminal(void) {
  static bool guarded;
  if (guarded || !isatty(STDIN_FILENO)) return;
  guarded = true;
  atexit(restore_mode);
  for (size_t i = 0; i < sizeof(deadly) / sizeof(deadly[0]); i++) {
    struct sigaction old, new = {.sa_handler = on_deadly_signal};
    sigemptyset(&new.sa_mask);
    if (sigaction(deadly[i], NULL, &old) == 0 && old.sa_handler == SIG_DFL) sigaction(deadly[i], &new, NULL);
  }
}

static int set_raw_mode(char *err) {
  struct termios raw;
  if (tcgetattr(STDIN_FILENO, &saved_mode) < 0) return console_fail(err, "cannot read the terminal's mode");
  raw = saved_mode;
  cfmakeraw(&raw);
  raw.c_oflag |= OPOST | ONLCR; /* the VMM's own messages; a CR that the guest sends as well does no harm */
  console_guard_terminal();
  mode_changed = 1;
  if (tcsetattr(STDIN_FILENO, TCSANOW, &raw) < 0) {
    mode_changed = 0;
    return console_fail(err, "cannot set the terminal to raw mode");
  }
  return 0;
}

/* A description of our own for a terminal or pipe, so that O_NONBLOCK does not leak to who shares it.  -1 for other kinds. */
static int reopen_nonblocking(int fd, int flags) {
  char path[32];
  struct stat st;
  if (fstat(fd, &st) < 0 || !(S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode))) return -1;
  snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
  return open(path, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

static int stdio_open(struct console *con, const char *path, char *err) {
  if (owner) return console_fail(err, "only one console can be on stdio");
  struct stat st;
  con->in_fd = fstat(STDIN_FILENO, &st) == 0 ? STDIN_FILENO : -1;
  int out = reopen_nonblocking(STDOUT_FILENO, O_WRONLY);
  con->own_out = out >= 0;
  con->out_fd = out >= 0 ? out : STDOUT_FILENO;
  con->escapes = con->in_fd >= 0 && isatty(STDIN_FILENO);
  if (con->escapes && set_raw_mode(err)) return -1;
  owner = con;
  return 0;
}

static void stdio_close(struct console *con) {
  if (con != owner) return;
  restore_mode();
  owner = NULL;
}

const struct console_kind console_kind_stdio = {"stdio", false, NULL, stdio_open, stdio_close};

/* The console on a new pseudo-terminal, or into a file. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "vmm/backend/console_priv.h"

/* The other side is kept open here too: without that, reading gives EIO whenever nobody else has it open. */
static int pty_open(struct console *con, const char *path, char *err) {
  char name[64];
  struct termios raw;
  int fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return console_fail(err, "cannot make a pseudo-terminal: %s", strerror(errno));
  con->in_fd = fd;
  con->out_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0); /* its own, for the event loop watches the two apart */
  con->own_in = con->own_out = true;
  con->drop = true;
  if (con->out_fd < 0 || grantpt(fd) < 0 || unlockpt(fd) < 0 || ptsname_r(fd, name, sizeof(name)) != 0)
    return console_fail(err, "cannot make a pseudo-terminal: %s", strerror(errno));
  con->keep_fd = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (con->keep_fd < 0) return console_fail(err, "cannot open %s: %s", name, strerror(errno));
  if (tcgetattr(con->keep_fd, &raw) == 0) {
    cfmakeraw(&raw);
    tcsetattr(con->keep_fd, TCSANOW, &raw);
  }
  fprintf(stderr, "uvirt: the console is on %s\n", name);
  return 0;
}

static int file_check(const char *path, char *err) {
  struct stat st;
  char *copy = strdup(path);
  if (!copy) return console_fail(err, "out of memory");
  bool exists = stat(path, &st) == 0;
  errno = exists && S_ISDIR(st.st_mode) ? EISDIR : 0;
  if (errno == 0 && access(exists ? path : dirname(copy), W_OK) == 0) errno = 0; /* a new file needs a directory to be made in */
  free(copy);
  return errno ? console_fail(err, "cannot write the console to %s: %s", path, strerror(errno)) : 0;
}

static int file_open(struct console *con, const char *path, char *err) {
  con->out_fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  con->own_out = true;
  if (con->out_fd < 0) return console_fail(err, "cannot write the console to %s: %s", path, strerror(errno));
  return 0;
}

const struct console_kind console_kind_pty = {"pty", false, NULL, pty_open, NULL};
const struct console_kind console_kind_file = {"file", true, file_check, file_open, NULL};

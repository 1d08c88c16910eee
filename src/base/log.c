/* Writes lines to standard error or to the log file. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/log.h"
#include "base/types.h"

static struct {
  pthread_once_t once;
  char *path; /* NULL: standard error */
  bool trace;
} settings = {.once = PTHREAD_ONCE_INIT};

static void read_settings(void) {
  const char *path = getenv("UVIRT_LOG");
  settings.path = path && *path ? strdup(path) : NULL;
  settings.trace = getenv("UVIRT_TRACE") != NULL;
}

/* The file is opened for each line: a descriptor kept open would have to survive whatever the client closes. */
static void write_line(const char *line, size_t len) {
  int fd = settings.path ? open(settings.path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666) : STDERR_FILENO;
  ssize_t done = fd < 0 ? -1 : write(fd, line, len);
  (void)done;
  if (settings.path && fd >= 0) close(fd);
}

/* One write(2) per line, so that lines of several threads do not mix. */
static void put_line(const char *prefix, const char *format, va_list ap) {
  char line[512];
  int saved = errno, n;
  if (settings.path)
    n = snprintf(line, sizeof(line), "uvirt[%d]: %s", getpid(), prefix);
  else
    n = snprintf(line, sizeof(line), "uvirt: %s", prefix);
  int m = vsnprintf(line + n, sizeof(line) - (size_t)n - 1, format, ap);
  size_t len = MIN((size_t)n + (m < 0 ? 0 : (size_t)m), sizeof(line) - 2);
  line[len++] = '\n';
  write_line(line, len);
  errno = saved;
}

void log_warn(const char *format, ...) {
  va_list ap;
  pthread_once(&settings.once, read_settings);
  va_start(ap, format);
  put_line("", format, ap);
  va_end(ap);
}

void log_note(const char *format, ...) {
  va_list ap;
  pthread_once(&settings.once, read_settings);
  if (!settings.path) return;
  va_start(ap, format);
  put_line("", format, ap);
  va_end(ap);
}

#ifndef NDEBUG
__attribute__((format(printf, 2, 3))) static void put(const char *prefix, const char *format, ...) {
  va_list ap;
  va_start(ap, format);
  put_line(prefix, format, ap);
  va_end(ap);
}

int trace_error_at(int err, const char *file, int line) {
  pthread_once(&settings.once, read_settings);
  if (settings.trace) put("error ", "%s (%d) at %s:%d", strerrordesc_np(err < 0 ? -err : err), err, file, line);
  return err;
}
#endif

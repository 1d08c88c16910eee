/* Writes log lines and error traces to standard error. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/log.h"
#include "base/types.h"

/* One write(2) per line, so that lines of several threads do not mix. */
static void put_line(const char *prefix, const char *format, va_list ap) {
  char line[512];
  int saved = errno;
  int n = snprintf(line, sizeof(line), "uvirt: %s", prefix);
  int m = vsnprintf(line + n, sizeof(line) - (size_t)n - 1, format, ap);
  size_t len = MIN((size_t)n + (m < 0 ? 0 : (size_t)m), sizeof(line) - 2);
  line[len++] = '\n';
  ssize_t done = write(STDERR_FILENO, line, len);
  (void)done;
  errno = saved;
}

void log_warn(const char *format, ...) {
  va_list ap;
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
  static _Atomic int wanted = -1;
  int w = atomic_load_explicit(&wanted, memory_order_relaxed);
  if (w < 0) {
    w = getenv("UVIRT_TRACE") != NULL;
    atomic_store_explicit(&wanted, w, memory_order_relaxed);
  }
  if (w) put("error ", "%s (%d) at %s:%d", strerrordesc_np(err < 0 ? -err : err), err, file, line);
  return err;
}
#endif

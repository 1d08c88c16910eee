/* A line for each translation: start, size, name.  perf reads the file when it reports; of an address that had several
 * translations it can know only the last one. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/log.h"
#include "base/process.h"
#include "x86/translate/perfmap.h"

static struct {
  pid_t pid; /* whose file has been begun: a forked child has one of its own */
  bool failed;
} map;
FORK_MUTEX(lock);

/* Called with the lock held; -1: there is no file.  Others may write to /tmp: the first time the file must be ours, made here. */
static int open_map(void) {
  char path[32];
  process_init();
  bool first = map.pid != process_pid();
  if (first) map.failed = false;
  if (map.failed) return -1;
  map.pid = process_pid();
  snprintf(path, sizeof(path), "/tmp/perf-%d.map", (int)map.pid);
  if (first) unlink(path);
  int fd = open(path, O_RDWR | O_APPEND | O_NOFOLLOW | O_CLOEXEC | (first ? O_CREAT | O_EXCL : 0), 0644);
  map.failed = fd < 0;
  if (fd < 0) log_warn("no names for perf: %s: %s", path, strerror(errno));
  return fd;
}

static void put(int fd, const char *text, size_t size) {
  for (ssize_t n; size && (n = write(fd, text, size)) > 0; size -= (size_t)n) text += n;
}

void perf_map_add(const u8 *start, size_t size, const char *name) {
  char line[256];
  int n = snprintf(line, sizeof(line), "%" PRIxPTR " %zx %s\n", (uintptr_t)start, size, name);
  pthread_mutex_lock(&lock);
  int fd = open_map();
  if (fd >= 0) {
    put(fd, line, MIN((size_t)n, sizeof(line) - 1));
    close(fd);
  }
  pthread_mutex_unlock(&lock);
}

/* Moves the lines that stay to the front; returns how many bytes they are. */
static size_t keep_others(const struct jit_arena *a, char *text, size_t size) {
  size_t kept = 0;
  for (size_t at = 0, len; at < size; at += len) {
    const char *end = memchr(text + at, '\n', size - at);
    len = end ? (size_t)(end + 1 - text) - at : size - at;
    if (jit_arena_holds(a, (const void *)(uintptr_t)strtoull(text + at, NULL, 16))) continue;
    memmove(text + kept, text + at, len);
    kept += len;
  }
  return kept;
}

static void filter(int fd, const struct jit_arena *a) {
  struct stat st;
  char *text = fstat(fd, &st) ? NULL : malloc((size_t)st.st_size + 1);
  if (!text) return;
  ssize_t n = pread(fd, text, (size_t)st.st_size, 0);
  if (n > 0) {
    text[n] = 0;
    size_t kept = keep_others(a, text, (size_t)n);
    if (!ftruncate(fd, 0)) put(fd, text, kept);
  }
  free(text);
}

void perf_map_forget(const struct jit_arena *a) {
  pthread_mutex_lock(&lock);
  int fd = open_map();
  if (fd >= 0) {
    filter(fd, a);
    close(fd);
  }
  pthread_mutex_unlock(&lock);
}

/* Executable memory: one memfd mapped twice, read-write and read-execute. */
#include "jit/codemem.h"
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "base/process.h"

#define ARENA (64u << 20) /* all forms of native instructions there are, with all immediates, take about 40 MiB; pages are taken as used */

static struct {
  pid_t pid; /* whose it is: a forked child, which shares the pages, makes its own */
  u8 *rw, *rx;
  size_t used;
} arena;
FORK_MUTEX(lock);

static bool arena_map(void) {
  int fd = memfd_create("uvirt-code", MFD_CLOEXEC);
  if (fd < 0) return false;
  void *rw = MAP_FAILED, *rx = MAP_FAILED;
  if (!ftruncate(fd, ARENA)) {
    rw = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    rx = mmap(NULL, ARENA, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
  }
  close(fd);
  if (rw == MAP_FAILED || rx == MAP_FAILED) {
    if (rw != MAP_FAILED) munmap(rw, ARENA);
    if (rx != MAP_FAILED) munmap(rx, ARENA);
    return false;
  }
  arena.pid = process_pid();
  arena.used = 0;
  arena.rw = rw;
  arena.rx = rx;
  return true;
}

void *codemem_add(const u8 *code, size_t len) {
  void *at = NULL;
  pthread_mutex_lock(&lock);
  if (((arena.rw && arena.pid == process_pid()) || arena_map()) && len <= ARENA - arena.used) {
    memcpy(arena.rw + arena.used, code, len);
    at = arena.rx + arena.used;
    arena.used = ALIGN_UP(arena.used + len, (size_t)16);
  }
  pthread_mutex_unlock(&lock);
  return at;
}

/* The file of statistics: slots handed out lowest first, so that a reader need not look far. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include "base/ownfd.h"
#include "base/process.h"
#include "core/stats_arena.h"

#define SLOTS 8192u /* address space and file size; memory only where used */
#define BYTES ((size_t)SLOTS * UVIRT_STATS_SLOT)

static struct {
  pid_t pid; /* whose it is: a forked child makes its own */
  int fd;
  u8 *base;
  u64 used[SLOTS / 64];
} arena = {.pid = -1, .fd = -1};
FORK_MUTEX(lock); /* innermost */

/* Called with the lock held.  A child keeps the parent's mapping (objects of the parent may still be closed there) and lets go of
 * the file. */
static bool ready(void) {
  process_init();
  pid_t pid = process_pid();
  if (arena.pid == pid) return true;
  int fd = own_fd(memfd_create(UVIRT_STATS_FILE, MFD_CLOEXEC));
  if (fd < 0) return false;
  u8 *p = ftruncate(fd, (off_t)BYTES) ? MAP_FAILED : mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (p == MAP_FAILED) {
    own_fd_close(fd);
    return false;
  }
  arena.pid = pid; /* a child leaves the descriptor of its parent's file alone: the number may be somebody else's by now */
  arena.fd = fd;
  arena.base = p;
  for (unsigned n = 0; n < ARRAY_SIZE(arena.used); n++) arena.used[n] = 0;
  return true;
}

static void *take(void) {
  for (unsigned n = 0; n < ARRAY_SIZE(arena.used); n++) {
    if (!~arena.used[n]) continue;
    unsigned bit = (unsigned)__builtin_ctzll(~arena.used[n]);
    arena.used[n] |= 1ull << bit;
    return arena.base + (size_t)(64 * n + bit) * UVIRT_STATS_SLOT;
  }
  return NULL;
}

void *stats_slot_alloc(void) {
  pthread_mutex_lock(&lock);
  void *p = ready() ? take() : NULL;
  pthread_mutex_unlock(&lock);
  if (p) return p;
  /* No descriptor left, or more objects than slots: counted all the same, unseen by others. */
  p = mmap(NULL, UVIRT_STATS_SLOT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return p == MAP_FAILED ? NULL : p;
}

/* The slot's place in this process's file; BYTES: it lies elsewhere.  Called with the lock held. */
static size_t place(void *slot) {
  size_t at = (size_t)((u8 *)slot - arena.base);
  return arena.base && arena.pid == process_pid() && at < BYTES ? at : BYTES;
}

static void punch(size_t at, size_t size) {
  fallocate(arena.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)size);
}

void stats_slot_hide(void *slot, size_t size) {
  pthread_mutex_lock(&lock);
  size_t at = place(slot);
  if (at < BYTES) punch(at, size);
  pthread_mutex_unlock(&lock);
}

void stats_slot_free(void *slot) {
  pthread_mutex_lock(&lock);
  size_t at = place(slot);
  bool ours = at < BYTES;
  if (ours) {
    punch(at, UVIRT_STATS_SLOT);
    /* A failure would leave the pages of a file that nobody else has: harmless. */
    mmap(slot, UVIRT_STATS_SLOT, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, arena.fd, (off_t)at);
    at /= UVIRT_STATS_SLOT;
    arena.used[at / 64] &= ~(1ull << at % 64);
  }
  pthread_mutex_unlock(&lock);
  if (!ours) munmap(slot, UVIRT_STATS_SLOT);
}

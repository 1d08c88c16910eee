/* Code memory of a VM. */
#include "jit/arena.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

static int map_file(struct jit_arena *a) {
  int fd = memfd_create("uvirt-translations", MFD_CLOEXEC);
  if (fd < 0) return -errno;
  int r = ftruncate(fd, (off_t)a->size) ? -errno : 0;
  if (!r) {
    a->rw = mmap(NULL, a->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    a->rx = mmap(NULL, a->size, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    if (a->rw == MAP_FAILED || a->rx == MAP_FAILED) r = -errno;
  }
  close(fd);
  return r;
}

/* An old size of 0 makes a second mapping of shared pages (mremap(2)). */
static int map_anonymous(struct jit_arena *a) {
  a->rw = mmap(NULL, a->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (a->rw == MAP_FAILED) return -errno;
  a->rx = mremap(a->rw, 0, a->size, MREMAP_MAYMOVE);
  return a->rx == MAP_FAILED || mprotect(a->rx, a->size, PROT_READ | PROT_EXEC) ? -errno : 0;
}

int jit_arena_create(struct jit_arena *a, size_t size, bool anonymous) {
  *a = (struct jit_arena){.size = size, .rw = MAP_FAILED, .rx = MAP_FAILED};
  int r = anonymous ? map_anonymous(a) : map_file(a);
  if (!r) {
    madvise(a->rw, size, MADV_DONTFORK); /* a child must not write into its parent's code */
    madvise(a->rx, size, MADV_DONTFORK);
  } else {
    jit_arena_destroy(a);
  }
  return r;
}

void jit_arena_destroy(struct jit_arena *a) {
  if (a->rw && a->rw != MAP_FAILED) munmap(a->rw, a->size);
  if (a->rx && a->rx != MAP_FAILED) munmap(a->rx, a->size);
  *a = (struct jit_arena){0};
}

void jit_arena_reset(struct jit_arena *a) {
  madvise(a->rw, a->size, MADV_REMOVE);
  a->used = a->words = 0;
}

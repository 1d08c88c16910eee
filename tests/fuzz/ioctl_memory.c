/* The client's memory in the ioctl fuzzer: pieces of every kind in a range of their own, and what may happen to them meanwhile.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>
#include "ioctl.h"

/* Addresses that no sanitizer uses for itself and the kernel gives to nobody who does not ask. */
#ifdef __SANITIZE_THREAD__
#define BASE 0x4000000000ull
#else
#define BASE 0x200000000000ull
#endif
enum { STRIDE = 2 << 20 };

_Static_assert((int)PIECE_SIZE < (int)STRIDE && (int)WINDOW_SIZE <= (int)STRIDE, "a gap behind each piece");

static int file[PIECES];

u8 *memory_piece(unsigned n) {
  return (u8 *)(BASE + (u64)n * STRIDE);
}
u8 *memory_window(unsigned n) {
  return memory_piece(PIECES + n);
}
bool memory_contains(u64 addr, u64 len) {
  u64 end = BASE + (u64)(PIECES + WINDOWS) * STRIDE;
  return addr >= BASE && addr < end && len <= end - addr;
}

u8 *memory_any(struct source *s) {
  u8 *p = memory_piece((unsigned)choose_below(s, PIECES + WINDOWS));
  size_t at = choose_below(s, 3) ? choose_below(s, 8) * 0x1000 : choose_below(s, PIECE_SIZE + 0x2000);
  return p + at;
}

bool memory_put(void *to, const void *from, size_t len) {
  struct iovec here = {(void *)from, len}, there = {to, len};
  return process_vm_writev(getpid(), &here, 1, &there, 1, 0) == (ssize_t)len;
}

bool memory_get(void *to, const void *from, size_t len) {
  struct iovec here = {to, len}, there = {(void *)from, len};
  return process_vm_readv(getpid(), &here, 1, &there, 1, 0) == (ssize_t)len;
}

static void map(u8 *at, size_t len, int prot, int flags, int fd, off_t offset) {
  void *p = mmap(at, len, prot, flags | MAP_FIXED, fd, offset);
  if (p == MAP_FAILED && !(flags & MAP_HUGETLB)) {
    perror("mmap");
    abort();
  }
}

static void map_piece(struct source *s, unsigned n) {
  u8 *at = memory_piece(n);
  int rw = PROT_READ | PROT_WRITE;
  switch (choose_below(s, 6)) {
  case 0:
  case 1:
    map(at, PIECE_SIZE, rw, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    break;
  case 2:
    map(at, PIECE_SIZE, rw, MAP_PRIVATE, file[n], 0);
    break;
  case 3:
    map(at, PIECE_SIZE, PROT_READ, MAP_SHARED, file[n], 0);
    break;
  default:
    map(at, PIECE_SIZE, rw, MAP_SHARED, file[n], 0);
  }
}

void memory_start(struct source *s) {
  for (unsigned n = 0; n < PIECES; n++) {
    file[n] = memfd_create("fuzz", MFD_CLOEXEC);
    if (file[n] < 0 || ftruncate(file[n], PIECE_SIZE)) abort();
    if (n < 4)
      map(memory_piece(n), PIECE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file[n], 0);
    else
      map_piece(s, n);
  }
}

void memory_end(void) {
  munmap((void *)BASE, (size_t)(PIECES + WINDOWS) * STRIDE);
  for (unsigned n = 0; n < PIECES; n++) close(file[n]);
}

void memory_disturb(struct source *s) {
  static const int prots[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE | PROT_EXEC, PROT_WRITE};
  static const int advices[] = {MADV_DONTNEED, MADV_FREE, MADV_REMOVE, MADV_HUGEPAGE, MADV_MERGEABLE, MADV_COLD, MADV_DONTFORK};
  unsigned n = (unsigned)choose_below(s, PIECES);
  size_t at = choose_below(s, 2) ? 0 : choose_below(s, 256) * 0x1000, len = (1 + choose_below(s, 256)) * 0x1000;
  if (len > PIECE_SIZE - at) len = PIECE_SIZE - at;
  u8 *p = memory_piece(n) + at;
  switch (choose_below(s, 8)) {
  case 0:
    munmap(p, len);
    break;
  case 1:
    mprotect(p, len, prots[choose_below(s, ARRAY_SIZE(prots))]);
    break;
  case 2:
    madvise(p, len, advices[choose_below(s, ARRAY_SIZE(advices))]);
    break;
  case 3:
    if (ftruncate(file[n], choose_below(s, 2) ? (off_t)at : PIECE_SIZE)) abort();
    break;
  case 4:
    fallocate(file[n], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)len);
    break;
  case 5: /* the same file page at two addresses, perhaps in two slots */
    map(p, len, PROT_READ | PROT_WRITE, MAP_SHARED, file[choose_below(s, PIECES)], (off_t)at);
    break;
  case 6:
    map(p, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    break;
  default:
    if (ftruncate(file[n], PIECE_SIZE)) abort();
    map_piece(s, n);
  }
}

/* Objects of a region: cut off its front, or what was freed of the same size. */
#include "base/region.h"
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

int region_create(struct region *r, size_t size) {
  void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return -ENOMEM;
  *r = (struct region){.base = p, .size = size};
  return 0;
}

void region_destroy(struct region *r) {
  if (r->base) munmap(r->base, r->size);
  *r = (struct region){0};
}

static unsigned class_of(size_t size) {
  return (unsigned)((size + REGION_UNIT - 1) / REGION_UNIT);
}

void *region_alloc(struct region *r, size_t size) {
  unsigned class = class_of(size);
  size_t bytes = (size_t)class * REGION_UNIT, used = atomic_load_explicit(&r->used, memory_order_relaxed);
  void *object = NULL;
  if (class >= REGION_CLASSES) return NULL;
  if (r->free[class]) {
    object = r->free[class];
    memcpy(&r->free[class], object, sizeof(void *));
    memset(object, 0, bytes);
  } else if (r->size - used >= bytes) {
    object = r->base + used;
    atomic_store_explicit(&r->used, used + bytes, memory_order_relaxed);
  }
  r->live += object != NULL;
  return object;
}

/* Private pages that were taken away read as zeros again (madvise(2)); locked ones are not taken. */
void region_clear(struct region *r) {
  size_t used = atomic_load_explicit(&r->used, memory_order_relaxed);
  if (used && madvise(r->base, used, MADV_DONTNEED)) memset(r->base, 0, used);
  memset(r->free, 0, sizeof(r->free));
  r->live = 0;
  atomic_store_explicit(&r->used, 0, memory_order_relaxed);
}

void region_free(struct region *r, void *object, size_t size) {
  unsigned class = class_of(size);
  memcpy(object, &r->free[class], sizeof(void *));
  r->free[class] = object;
  if (--r->live == 0) region_clear(r);
}

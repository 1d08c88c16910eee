/* A region of memory for many small objects of all sizes, whose pages go back to the host at once when it is empty.  Its owner locks. */
#ifndef BASE_REGION_H
#define BASE_REGION_H

#include "base/types.h"

#define REGION_UNIT    64u   /* sizes are rounded up to this */
#define REGION_MAX     8192u /* bytes of an object */
#define REGION_CLASSES (REGION_MAX / REGION_UNIT + 1)

struct region {
  u8 *base;
  size_t size;
  _Atomic size_t used; /* bytes that were given out at any time since it was last empty; may be read without the lock */
  size_t live;         /* objects */
  void *free[REGION_CLASSES];
};

/* Reserves addresses; pages are taken as they are used.  0 or -ENOMEM. */
int region_create(struct region *r, size_t size);
void region_destroy(struct region *r);
/* Zeroed.  NULL: full. */
void *region_alloc(struct region *r, size_t size);
/* size: as it was asked for. */
void region_free(struct region *r, void *object, size_t size);
/* Frees everything. */
void region_clear(struct region *r);

#endif

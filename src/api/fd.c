/* The descriptor table: pointers by number, in chunks that are made on demand and never freed; lookups are lock-free under RCU. */
#include "api/fd.h"
#include <errno.h>
#include <stdlib.h>
#include <urcu-bp.h>

#define CHUNK_BITS 10
#define CHUNKS     1024 /* 2^20 descriptors, the kernel's usual nr_open */

static struct fd_object **chunks[CHUNKS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct fd_object **slot(int fd, bool make) {
  if (fd < 0 || fd >= CHUNKS << CHUNK_BITS) return NULL;
  struct fd_object ***c = &chunks[fd >> CHUNK_BITS];
  struct fd_object **chunk = __atomic_load_n(c, __ATOMIC_ACQUIRE);
  if (!chunk && make) {
    chunk = calloc(1u << CHUNK_BITS, sizeof(*chunk));
    if (chunk) __atomic_store_n(c, chunk, __ATOMIC_RELEASE);
  }
  return chunk ? &chunk[fd & ((1 << CHUNK_BITS) - 1)] : NULL;
}

int fd_install(int fd, const struct fd_object *object) {
  struct fd_object *o = malloc(sizeof(*o));
  if (!o) return -ENOMEM;
  *o = *object;
  atomic_store(&o->refs, 1);
  pthread_mutex_lock(&lock);
  struct fd_object **s = slot(fd, true);
  if (s) rcu_assign_pointer(*s, o);
  pthread_mutex_unlock(&lock);
  if (s) return 0;
  free(o);
  return -EMFILE;
}

struct fd_object *fd_get(int fd) {
  struct fd_object **s = slot(fd, false), *o = NULL;
  if (!s || !__atomic_load_n(s, __ATOMIC_RELAXED)) return NULL;
  rcu_read_lock();
  o = rcu_dereference(*s);
  if (o) atomic_fetch_add_explicit(&o->refs, 1, memory_order_relaxed);
  rcu_read_unlock();
  return o;
}

void fd_put(struct fd_object *o) {
  if (atomic_fetch_sub_explicit(&o->refs, 1, memory_order_acq_rel) != 1) return;
  if (o->kind == FD_VCPU) vcpu_put(o->vcpu);
  if (o->kind == FD_VM) vm_put(o->vm);
  free(o);
}

struct fd_object *fd_remove(int fd) {
  pthread_mutex_lock(&lock);
  struct fd_object **s = slot(fd, false), *o = s ? *s : NULL;
  if (o) rcu_assign_pointer(*s, NULL);
  pthread_mutex_unlock(&lock);
  if (o) synchronize_rcu(); /* whoever found it has its reference by now */
  return o;
}

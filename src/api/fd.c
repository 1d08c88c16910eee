/* The descriptor table. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "api/fd.h"
#include "base/log.h"
#include "base/process.h"
#include "base/rcu.h"
#include "core/device.h"

#define MAX_FDS (1u << 20) /* Linux's default hard limit; the table is reserved address space that costs nothing until used */

typedef struct fd_object *entry_t;
static _Atomic(entry_t) *table;  /* (o) MAX_FDS entries */
static _Atomic unsigned highest; /* no entry above it was ever used */

static void make_table(void) {
  void *p = mmap(NULL, MAX_FDS * sizeof(*table), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p != MAP_FAILED) __atomic_store_n(&table, p, __ATOMIC_RELEASE);
}

static _Atomic(entry_t) *entry_of(int fd) {
  _Atomic(entry_t) *t = __atomic_load_n(&table, __ATOMIC_ACQUIRE);
  return t && fd >= 0 && (unsigned)fd < MAX_FDS ? &t[fd] : NULL;
}

/* ---- objects ---- */

/* A forked child holds no reference worth giving back: the VM's threads and locks are its parent's. */
static void release(struct fd_object *o) {
  if (o->vm && o->vm->owner != process_pid()) return;
  if (o->kind == FD_DEVICE) device_destroy(o->device);
  if (o->kind == FD_VM) vm_release(o->vm);
  if (o->vcpu) vcpu_put(o->vcpu);
  if (o->vm) vm_put(o->vm);
}

void fd_put(struct fd_object *o) {
  if (atomic_fetch_sub_explicit(&o->refs, 1, memory_order_acq_rel) != 1) return;
  release(o);
  synchronize_rcu(); /* a reader may still look at refs */
  free(o);
}

/* ---- entries ---- */

bool fd_is_ours(int fd) {
  _Atomic(entry_t) *e = entry_of(fd);
  return e && atomic_load_explicit(e, memory_order_relaxed);
}

struct fd_object *fd_get(int fd) {
  _Atomic(entry_t) *e = entry_of(fd);
  if (!e) return NULL;
  rcu_read_lock();
  struct fd_object *o = atomic_load_explicit(e, memory_order_acquire);
  /* The entry's own reference may go at any time: only a count that is not zero may grow. */
  int refs = o ? atomic_load_explicit(&o->refs, memory_order_relaxed) : 0;
  while (refs && !atomic_compare_exchange_weak_explicit(&o->refs, &refs, refs + 1, memory_order_acquire, memory_order_relaxed)) {
  }
  rcu_read_unlock();
  return refs ? o : NULL;
}

/* A descriptor closed behind our back leaves its entry; the number's new owner replaces it. */
static void replace_entry(_Atomic(entry_t) *e, struct fd_object *o) {
  unsigned fd = (unsigned)(e - table), max = atomic_load_explicit(&highest, memory_order_relaxed);
  while (fd > max && !atomic_compare_exchange_weak(&highest, &max, fd)) {
  }
  struct fd_object *old = atomic_exchange_explicit(e, o, memory_order_acq_rel);
  if (old) fd_put(old);
}

int fd_enter(int fd, const struct fd_object *init) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, make_table);
  struct fd_object *o = malloc(sizeof(*o));
  _Atomic(entry_t) *e = entry_of(fd);
  if (!o || !e) {
    int err = o ? -EMFILE : -ENOMEM;
    free(o);
    return trace_error(err);
  }
  *o = *init;
  atomic_init(&o->refs, 1);
  replace_entry(e, o);
  return 0;
}

int fd_install(int fd, const struct fd_object *init) {
  int r = fd_enter(fd, init);
  if (!r) return fd;
  struct fd_object give_back = *init;
  release(&give_back);
  close(fd);
  return r;
}

int fd_alias(int old, int newfd) {
  _Atomic(entry_t) *e = entry_of(newfd);
  struct fd_object *o = fd_get(old);
  if (!o || !e) {
    if (o) fd_put(o);
    return o ? -EMFILE : -EBADF;
  }
  replace_entry(e, o); /* the reference from fd_get() becomes the entry's */
  return 0;
}

/* The entry goes first: once close() has freed the number, another thread may get it. */
int fd_close(int fd) {
  _Atomic(entry_t) *e = entry_of(fd);
  struct fd_object *o = e ? atomic_exchange_explicit(e, NULL, memory_order_acq_rel) : NULL;
  if (!o) return -EBADF;
  int r = close(fd) ? -errno : 0;
  fd_put(o);
  return r;
}

void fd_forget(unsigned first, unsigned last) {
  if (!__atomic_load_n(&table, __ATOMIC_ACQUIRE)) return;
  last = MIN(last, atomic_load(&highest));
  for (unsigned fd = first; fd <= last; fd++)
    if (fd_is_ours((int)fd)) replace_entry(entry_of((int)fd), NULL);
}

int fd_find(const struct stat *file) {
  struct stat st;
  for (int fd = 0; fd <= (int)atomic_load(&highest); fd++)
    if (fd_is_ours(fd) && !fstat(fd, &st) && st.st_ino == file->st_ino && st.st_dev == file->st_dev) return fd;
  return -1;
}

int fd_make(const char *name, bool cloexec) {
  int fd = memfd_create(name, cloexec ? MFD_CLOEXEC : 0);
  return fd < 0 ? trace_error(-errno) : fd;
}

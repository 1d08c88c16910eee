/* The dispatcher: one hash table of rows per kind of descriptor, and the journey of an argument.
 *
 * Locks are taken in the order vcpu->mutex, vm->lock (docs/locking.md).
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include "api/dispatch.h"
#include "base/log.h"
#include "base/process.h"

#define BUCKETS    512u /* several times the rows of a table: look-ups end at the first or second probe */
#define SMALL_DATA 512u /* arguments up to this size travel on the stack */

struct row_table {
  const struct ioctl_row *bucket[BUCKETS];
};

struct api {
  const struct arch_ops *arch;
  struct api *next; /* apis */
  struct row_table table[FD_KINDS];
};

static unsigned hash(u32 request) {
  return (request ^ (request >> 16) * 7u) % BUCKETS;
}

static void add_rows(struct row_table *t, const struct ioctl_row *row, unsigned n) {
  for (unsigned i = 0; i < n; i++) {
    unsigned h = hash((u32)row[i].request);
    while (t->bucket[h] && t->bucket[h]->request != row[i].request) h = (h + 1) % BUCKETS;
    if (!t->bucket[h]) t->bucket[h] = &row[i]; /* the architecture's rows come first and win */
  }
}

static const struct ioctl_row *find_row(const struct row_table *t, u32 request) {
  unsigned h = hash(request);
  while (t->bucket[h] && (u32)t->bucket[h]->request != request) h = (h + 1) % BUCKETS;
  return t->bucket[h];
}

static struct api *make_api(const struct arch_ops *arch) {
  struct api *a = calloc(1, sizeof(*a));
  if (!a) return NULL;
  a->arch = arch;
  add_rows(&a->table[FD_SYSTEM], arch->system_ioctls, arch->n_system_ioctls);
  add_rows(&a->table[FD_SYSTEM], kvm_system_rows.row, kvm_system_rows.n);
  add_rows(&a->table[FD_VM], arch->vm_ioctls, arch->n_vm_ioctls);
  add_rows(&a->table[FD_VM], kvm_vm_rows.row, kvm_vm_rows.n);
  add_rows(&a->table[FD_VCPU], arch->vcpu_ioctls, arch->n_vcpu_ioctls);
  add_rows(&a->table[FD_VCPU], kvm_vcpu_rows.row, kvm_vcpu_rows.n);
  add_rows(&a->table[FD_DEVICE], kvm_device_rows.row, kvm_device_rows.n);
  return a;
}

static _Atomic(struct api *) apis; /* grows at the head only */

const struct api *api_of(const struct arch_ops *arch) {
  struct api *head = atomic_load(&apis);
  for (struct api *a = head; a; a = a->next)
    if (a->arch == arch) return a;
  struct api *a = make_api(arch);
  if (!a) return NULL;
  /* Two threads may both add one: both are right. */
  do a->next = head;
  while (!atomic_compare_exchange_weak(&apis, &head, a));
  return a;
}

const struct arch_ops *api_arch(const struct api *api) {
  return api->arch;
}

/* ---- one call ---- */

/* What KVM answers to a number it does not know, by kind (virt/kvm/kvm_main.c, arch/x86/kvm/x86.c). */
static int unknown_request(const struct fd_object *o, u32 request) {
  switch (o->kind) {
  case FD_SYSTEM:
  case FD_VCPU:
    return -EINVAL;
  default:
    return -ENOTTY;
  }
}

static long call_locked(const struct ioctl_row *row, struct ioctl_ctx *ctx, void *data) {
  if (row->locks & LOCK_VM) pthread_mutex_lock(&ctx->vm->lock);
  long r = row->fn(ctx, data);
  if (row->locks & LOCK_VM) pthread_mutex_unlock(&ctx->vm->lock);
  return r;
}

/* The part between the copies.  KVM copies with vcpu->mutex held, so that a fault and a bad state are reported in this order. */
static long call_with_data(const struct ioctl_row *row, struct ioctl_ctx *ctx, void *data, size_t size) {
  bool in = row->arg == ARG_IN || row->arg == ARG_INOUT, out = row->arg == ARG_OUT || row->arg == ARG_INOUT;
  if (in && copy_from_user(data, ctx->user, size)) return trace_error(-EFAULT);
  if (!in) memset(data, 0, size);
  long r = call_locked(row, ctx, data);
  if (r >= 0 && out && copy_to_user(ctx->user, data, size)) return trace_error(-EFAULT);
  return r;
}

static bool has_data(const struct ioctl_row *row) {
  return row->arg == ARG_IN || row->arg == ARG_OUT || row->arg == ARG_INOUT;
}

static long call(const struct ioctl_row *row, struct ioctl_ctx *ctx) {
  size_t size = _IOC_SIZE(row->request);
  if (!has_data(row)) return call_locked(row, ctx, NULL);
  if (size <= SMALL_DATA) {
    _Alignas(16) u8 data[SMALL_DATA];
    return call_with_data(row, ctx, data, size);
  }
  void *data = malloc(size);
  if (!data) return trace_error(-ENOMEM);
  long r = call_with_data(row, ctx, data, size);
  free(data);
  return r;
}

/* What the client may or may not tell its user. */
static long refuse(const char *name, unsigned long request, long err) {
  if (err != -EINTR) log_note("%s (0x%x): %s", name, (u32)request, strerror((int)-err));
  return err;
}

static long call_row(const struct ioctl_row *row, struct fd_object *o, void *arg) {
  struct ioctl_ctx ctx = {.object = o, .vm = o->vm, .vcpu = o->vcpu, .value = (u64)(uintptr_t)arg, .user = arg};
  if (!(row->locks & LOCK_VCPU)) return call(row, &ctx);
  pthread_mutex_lock(&ctx.vcpu->mutex);
  long r = call(row, &ctx);
  pthread_mutex_unlock(&ctx.vcpu->mutex);
  return r;
}

long api_ioctl(struct fd_object *o, unsigned long request, void *arg) {
  struct vm *vm = o->vm;
  if (vm && unlikely(vm->owner != process_pid() || atomic_load_explicit(&vm->dead, memory_order_relaxed)))
    return refuse("ioctl of another process's VM", request, trace_error(-EIO));
  const struct ioctl_row *row = find_row(&o->api->table[o->kind], (u32)request); /* the kernel's cmd is an unsigned int */
  if (unlikely(!row)) return refuse("unknown ioctl", request, trace_error(unknown_request(o, (u32)request)));
  long r = call_row(row, o, arg);
  return unlikely(is_errno(r)) ? refuse(row->name, request, r) : r;
}

/* From (descriptor, request) to a table row: copy in, lock, call, copy out. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
#include "api/dispatch.h"
#include "base/fault.h"

static int copy_guarded(void *dst, const void *src, size_t len) {
  struct fault_guard guard;
  if (!len) return 0;
  if (fault_try(&guard)) return -EFAULT;
  memcpy(dst, src, len);
  fault_end(&guard);
  return 0;
}

int copy_from_user(void *dst, const void *user, size_t len) { return copy_guarded(dst, user, len); }
int copy_to_user(void *user, const void *src, size_t len) { return copy_guarded(user, src, len); }

static const struct ioctl_row *find(const struct ioctl_row *rows, unsigned n, unsigned long request) {
  for (unsigned k = 0; k < n; k++)
    if (rows[k].request == request) return &rows[k];
  return NULL;
}

static const struct ioctl_row *find_row(const struct fd_object *o, unsigned long request) {
  const struct arch_ops *a = o->arch;
  const struct {
    const struct ioctl_row *own, *arch;
    unsigned n_own, n_arch;
  } tables[] = {
      [FD_SYSTEM] = {system_rows, a->system_ioctls, n_system_rows, a->n_system_ioctls},
      [FD_VM] = {vm_rows, a->vm_ioctls, n_vm_rows, a->n_vm_ioctls},
      [FD_VCPU] = {vcpu_rows, a->vcpu_ioctls, n_vcpu_rows, a->n_vcpu_ioctls},
  };
  const struct ioctl_row *row = find(tables[o->kind].own, tables[o->kind].n_own, request);
  return row ? row : find(tables[o->kind].arch, tables[o->kind].n_arch, request);
}

static void take(const struct ioctl_row *row, struct ioctl_ctx *ctx) {
  if (row->locks & LOCK_VCPU) pthread_mutex_lock(&ctx->vcpu->mutex);
  if (row->locks & LOCK_VM) pthread_mutex_lock(&ctx->vm->lock);
}

static void release(const struct ioctl_row *row, struct ioctl_ctx *ctx) {
  if (row->locks & LOCK_VM) pthread_mutex_unlock(&ctx->vm->lock);
  if (row->locks & LOCK_VCPU) pthread_mutex_unlock(&ctx->vcpu->mutex);
}

static long call(const struct ioctl_row *row, struct ioctl_ctx *ctx, void *arg) {
  u64 small[32];
  size_t size = row->arg == ARG_IN || row->arg == ARG_OUT || row->arg == ARG_INOUT ? _IOC_SIZE(row->request) : 0;
  void *data = size > sizeof(small) ? malloc(size) : small;
  if (!data) return -ENOMEM;
  long r = 0;
  if (row->arg == ARG_OUT) memset(data, 0, size);
  else if (size) r = copy_from_user(data, arg, size);
  if (!r) {
    take(row, ctx);
    r = row->fn(ctx, data);
    release(row, ctx);
  }
  if (r >= 0 && (row->arg == ARG_OUT || row->arg == ARG_INOUT)) {
    int c = copy_to_user(arg, data, size);
    if (c) r = c;
  }
  if (data != small) free(data);
  return r;
}

long dispatch_ioctl(struct fd_object *o, unsigned long request, void *arg) {
  struct ioctl_ctx ctx = {.vcpu = o->vcpu, .vm = o->vcpu ? o->vcpu->vm : o->vm, .value = (u64)(uintptr_t)arg, .user = arg};
  if (o->kind == FD_VCPU && request == KVM_RUN) { /* the hot one */
    if (arg) return -EINVAL;
    pthread_mutex_lock(&o->vcpu->mutex);
    long r = vcpu_run(o->vcpu);
    pthread_mutex_unlock(&o->vcpu->mutex);
    return r;
  }
  if (ctx.vm && (ctx.vm->owner != getpid() || ctx.vm->dead)) return -EIO;
  const struct ioctl_row *row = find_row(o, request);
  if (!row) return o->kind == FD_SYSTEM ? -EINVAL : -ENOTTY;
  return call(row, &ctx, arg);
}

/* The neutral ioctls of a vCPU. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include "api/caps.h"
#include "api/dispatch.h"
#include "base/log.h"
#include "base/signals.h"
#include "core/stats.h"

#define KERNEL_SIGSET_BYTES 8u

static long run(struct ioctl_ctx *ctx, void *data) { return unlikely(ctx->value) ? -EINVAL : vcpu_run(ctx->vcpu); }

/* No pointer: the mask is given up. */
static long set_signal_mask(struct ioctl_ctx *ctx, void *data) {
  struct kvm_signal_mask head;
  struct vcpu *vcpu = ctx->vcpu;
  if (!ctx->user) {
    vcpu->sigset_active = false;
    return 0;
  }
  if (copy_from_user(&head, ctx->user, sizeof(head))) return trace_error(-EFAULT);
  if (head.len != KERNEL_SIGSET_BYTES) return trace_error(-EINVAL);
  sigset_t set;
  sigemptyset(&set); /* the kernel's set is the first word of libc's */
  if (copy_from_user(&set, user_at(ctx->user, sizeof(head)), KERNEL_SIGSET_BYTES)) return trace_error(-EFAULT);
  vcpu->sigset = set;
  vcpu->sigset_active = true;
  signals_changed();
  return 0;
}

static long enable_cap(struct ioctl_ctx *ctx, void *data) { return caps_enable_vcpu(ctx->vcpu, data); }

static long get_stats_fd(struct ioctl_ctx *ctx, void *data) {
  int fd = vcpu_stats_fd(ctx->vcpu);
  if (fd < 0) return fd;
  vm_get(ctx->vm);
  return fd_install(fd, &(struct fd_object){.kind = FD_STATS, .api = ctx->object->api, .vm = ctx->vm});
}

static const struct ioctl_row rows[] = {
    {KVM_RUN, "KVM_RUN", ARG_VALUE, LOCK_VCPU, run},
    {KVM_SET_SIGNAL_MASK, "KVM_SET_SIGNAL_MASK", ARG_USER, LOCK_VCPU, set_signal_mask},
    {KVM_ENABLE_CAP, "KVM_ENABLE_CAP", ARG_IN, LOCK_VCPU, enable_cap},
    {KVM_GET_STATS_FD, "KVM_GET_STATS_FD", ARG_NONE, LOCK_VCPU, get_stats_fd},
};

const struct ioctl_rows kvm_vcpu_rows = {rows, ARRAY_SIZE(rows)};

/* The neutral ioctls of a VM. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
#include "api/caps.h"
#include "api/dispatch.h"
#include "base/log.h"
#include "core/coalesced.h"
#include "core/device.h"
#include "core/dirty.h"
#include "core/dirty_ring.h"
#include "core/ioeventfd.h"
#include "core/irqfd.h"
#include "core/memslot.h"
#include "core/route.h"
#include "core/stats.h"

#define MAX_ROUTES 4096u

static long create_vcpu(struct ioctl_ctx *ctx, void *data) {
  if (ctx->value != (u32)ctx->value) return trace_error(-EINVAL);
  struct fd_object o = {.kind = FD_VCPU, .api = ctx->object->api, .vm = ctx->vm};
  int r = vcpu_create(ctx->vm, (u32)ctx->value, &o.vcpu);
  if (r) return r;
  vm_get(ctx->vm);
  return fd_install(o.vcpu->fd, &o);
}

static long check_extension(struct ioctl_ctx *ctx, void *data) { return caps_check(ctx->vm->arch, ctx->vm, (long)ctx->value); }
static long enable_cap(struct ioctl_ctx *ctx, void *data) { return caps_enable_vm(ctx->vm, data); }
static long set_memory_region(struct ioctl_ctx *ctx, void *data) { return vm_set_memory_region(ctx->vm, data); }
static long get_dirty_log(struct ioctl_ctx *ctx, void *data) { return vm_get_dirty_log(ctx->vm, data); }
static long clear_dirty_log(struct ioctl_ctx *ctx, void *data) { return vm_clear_dirty_log(ctx->vm, data); }
static long register_coalesced(struct ioctl_ctx *ctx, void *data) { return vm_register_coalesced(ctx->vm, data); }
static long unregister_coalesced(struct ioctl_ctx *ctx, void *data) { return vm_unregister_coalesced(ctx->vm, data); }
static long irqfd(struct ioctl_ctx *ctx, void *data) { return vm_irqfd(ctx->vm, data); }
static long ioeventfd(struct ioctl_ctx *ctx, void *data) { return vm_ioeventfd(ctx->vm, data); }
static long signal_msi(struct ioctl_ctx *ctx, void *data) { return vm_signal_msi(ctx->vm, data); }

static long set_line(struct ioctl_ctx *ctx, struct kvm_irq_level *l, bool status) {
  if (!ctx->vm->arch->irqchip_present(ctx->vm)) return trace_error(-ENXIO);
  l->status = vm_set_irq(ctx->vm, KVM_USERSPACE_IRQ_SOURCE_ID, l->irq, (int)l->level, status);
  return 0;
}

/* irq and status share their bytes; the level is a truth value. */
static long irq_line(struct ioctl_ctx *ctx, void *data) { return set_line(ctx, data, false); }
static long irq_line_status(struct ioctl_ctx *ctx, void *data) { return set_line(ctx, data, true); }

/* ARG_USER: the header is copied here, the entries behind it. */
static long set_gsi_routing(struct ioctl_ctx *ctx, void *data) {
  struct kvm_irq_routing head;
  if (copy_from_user(&head, ctx->user, sizeof(head))) return trace_error(-EFAULT);
  if (!ctx->vm->arch->irqchip_present(ctx->vm) || head.nr > MAX_ROUTES || head.flags) return trace_error(-EINVAL);
  size_t size = head.nr * sizeof(struct kvm_irq_routing_entry);
  struct kvm_irq_routing_entry *entries = malloc(MAX(size, (size_t)1));
  if (!entries) return trace_error(-ENOMEM);
  long r = copy_from_user(entries, user_at(ctx->user, sizeof(head)), size);
  if (!r) r = vm_set_routing(ctx->vm, entries, head.nr, head.flags);
  free(entries);
  return r;
}

static long create_device(struct ioctl_ctx *ctx, void *data) {
  struct kvm_create_device *cd = data;
  const struct device_ops *ops = device_type(cd->type);
  if (!ops) return trace_error(-ENODEV);
  if (cd->flags & KVM_CREATE_DEVICE_TEST) return 0;
  struct fd_object o = {.kind = FD_DEVICE, .api = ctx->object->api, .vm = ctx->vm};
  int fd = fd_make(ops->name, true);
  if (fd < 0) return fd;
  int r = device_create(ctx->vm, ops, &o.device);
  if (r) {
    close(fd);
    return r;
  }
  vm_get(ctx->vm);
  fd = fd_install(fd, &o);
  if (fd < 0) return fd;
  cd->fd = (u32)fd;
  return 0;
}

static long reset_dirty_rings(struct ioctl_ctx *ctx, void *data) { return vm_reset_dirty_rings(ctx->vm); }

static long get_stats_fd(struct ioctl_ctx *ctx, void *data) {
  int fd = vm_stats_fd(ctx->vm);
  if (fd < 0) return fd;
  vm_get(ctx->vm);
  return fd_install(fd, &(struct fd_object){.kind = FD_STATS, .api = ctx->object->api, .vm = ctx->vm});
}

static const struct ioctl_row rows[] = {
    {KVM_CREATE_VCPU, "KVM_CREATE_VCPU", ARG_VALUE, LOCK_NONE, create_vcpu},
    {KVM_CHECK_EXTENSION, "KVM_CHECK_EXTENSION", ARG_VALUE, LOCK_NONE, check_extension},
    {KVM_ENABLE_CAP, "KVM_ENABLE_CAP", ARG_IN, LOCK_NONE, enable_cap},
    {KVM_SET_USER_MEMORY_REGION, "KVM_SET_USER_MEMORY_REGION", ARG_IN, LOCK_NONE, set_memory_region},
    {KVM_GET_DIRTY_LOG, "KVM_GET_DIRTY_LOG", ARG_IN, LOCK_NONE, get_dirty_log},
    {KVM_CLEAR_DIRTY_LOG, "KVM_CLEAR_DIRTY_LOG", ARG_IN, LOCK_NONE, clear_dirty_log},
    {KVM_RESET_DIRTY_RINGS, "KVM_RESET_DIRTY_RINGS", ARG_NONE, LOCK_NONE, reset_dirty_rings},
    {KVM_REGISTER_COALESCED_MMIO, "KVM_REGISTER_COALESCED_MMIO", ARG_IN, LOCK_NONE, register_coalesced},
    {KVM_UNREGISTER_COALESCED_MMIO, "KVM_UNREGISTER_COALESCED_MMIO", ARG_IN, LOCK_NONE, unregister_coalesced},
    {KVM_IRQFD, "KVM_IRQFD", ARG_IN, LOCK_NONE, irqfd},
    {KVM_IOEVENTFD, "KVM_IOEVENTFD", ARG_IN, LOCK_NONE, ioeventfd},
    {KVM_SIGNAL_MSI, "KVM_SIGNAL_MSI", ARG_IN, LOCK_NONE, signal_msi},
    {KVM_IRQ_LINE, "KVM_IRQ_LINE", ARG_IN, LOCK_NONE, irq_line},
    {KVM_IRQ_LINE_STATUS, "KVM_IRQ_LINE_STATUS", ARG_INOUT, LOCK_NONE, irq_line_status},
    {KVM_SET_GSI_ROUTING, "KVM_SET_GSI_ROUTING", ARG_USER, LOCK_NONE, set_gsi_routing},
    {KVM_CREATE_DEVICE, "KVM_CREATE_DEVICE", ARG_INOUT, LOCK_NONE, create_device},
    {KVM_GET_STATS_FD, "KVM_GET_STATS_FD", ARG_NONE, LOCK_NONE, get_stats_fd},
};

const struct ioctl_rows kvm_vm_rows = {rows, ARRAY_SIZE(rows)};

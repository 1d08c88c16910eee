/* The ioctls of devices made by KVM_CREATE_DEVICE: attributes. */
#include <errno.h>
#include "api/dispatch.h"
#include "api/fd.h"
#include "core/device.h"

typedef int accessor(struct device *dev, const struct kvm_device_attr *attr);

/* KVM looks for the accessor before it looks at the argument. */
static long access_attr(struct ioctl_ctx *ctx, accessor *fn) {
  struct kvm_device_attr attr;
  if (!fn) return -EPERM;
  if (copy_from_user(&attr, ctx->user, sizeof(attr))) return -EFAULT;
  return fn(ctx->object->device, &attr);
}

static long set_attr(struct ioctl_ctx *ctx, void *data) { return access_attr(ctx, ctx->object->device->ops->set_attr); }
static long get_attr(struct ioctl_ctx *ctx, void *data) { return access_attr(ctx, ctx->object->device->ops->get_attr); }
static long has_attr(struct ioctl_ctx *ctx, void *data) { return access_attr(ctx, ctx->object->device->ops->has_attr); }

static const struct ioctl_row rows[] = {
    {KVM_SET_DEVICE_ATTR, "KVM_SET_DEVICE_ATTR", ARG_USER, LOCK_NONE, set_attr},
    {KVM_GET_DEVICE_ATTR, "KVM_GET_DEVICE_ATTR", ARG_USER, LOCK_NONE, get_attr},
    {KVM_HAS_DEVICE_ATTR, "KVM_HAS_DEVICE_ATTR", ARG_USER, LOCK_NONE, has_attr},
};

const struct ioctl_rows kvm_device_rows = {rows, ARRAY_SIZE(rows)};

/* KVM_CREATE_DEVICE: the types that exist, and the objects. */
#include <errno.h>
#include <stdlib.h>
#include "base/log.h"
#include "core/device.h"

/* By KVM_DEV_TYPE_*.  No type of this build: x86 has only KVM_DEV_TYPE_VFIO, which needs assigned devices. */
static const struct device_ops *const types[KVM_DEV_TYPE_MAX];

const struct device_ops *device_type(u32 type) { return type < ARRAY_SIZE(types) ? types[type] : NULL; }

int device_create(struct vm *vm, const struct device_ops *ops, struct device **out) {
  struct device *dev = calloc(1, sizeof(*dev));
  if (!dev) return trace_error(-ENOMEM);
  dev->ops = ops;
  dev->vm = vm;
  pthread_mutex_lock(&vm->lock);
  int r = ops->create(dev);
  pthread_mutex_unlock(&vm->lock);
  if (r) {
    free(dev);
    return r;
  }
  vm_get(vm);
  *out = dev;
  return 0;
}

void device_destroy(struct device *dev) {
  struct vm *vm = dev->vm;
  if (dev->ops->destroy) dev->ops->destroy(dev);
  free(dev);
  vm_put(vm);
}

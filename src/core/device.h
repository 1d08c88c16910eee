/* Devices made by KVM_CREATE_DEVICE: objects with attributes and a descriptor of their own. */
#ifndef CORE_DEVICE_H
#define CORE_DEVICE_H

#include "core/vm.h"

struct device;

/* Unset accessors answer -EPERM. */
struct device_ops {
  const char *name;
  int (*create)(struct device *dev); /* vm->lock held */
  void (*destroy)(struct device *dev);
  int (*set_attr)(struct device *dev, const struct kvm_device_attr *attr);
  int (*get_attr)(struct device *dev, const struct kvm_device_attr *attr);
  int (*has_attr)(struct device *dev, const struct kvm_device_attr *attr);
};

struct device {
  const struct device_ops *ops;
  struct vm *vm; /* holds a reference */
  void *priv;
};

/* The operations of a type, or NULL where this build does not provide it (-ENODEV for the client). */
const struct device_ops *device_type(u32 type);
int device_create(struct vm *vm, const struct device_ops *ops, struct device **out);
void device_destroy(struct device *dev);

#endif

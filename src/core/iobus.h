/* Port and MMIO buses of a VM: chips, ioeventfds and coalesced ranges that answer inside the library. */
#ifndef CORE_IOBUS_H
#define CORE_IOBUS_H

#include "core/vm.h"

struct io_device;

/* Return 0 when the access was handled, -EOPNOTSUPP to let the next device or the client have it. */
struct io_device_ops {
  int (*read)(struct io_device *dev, struct vcpu *vcpu, u64 addr, unsigned len, void *data);
  int (*write)(struct io_device *dev, struct vcpu *vcpu, u64 addr, unsigned len, const void *data);
  void (*destroy)(struct io_device *dev); /* may be NULL; called after a grace period */
};

struct io_device {
  const struct io_device_ops *ops;
};

/* Register/unregister under vm->slots_lock (the _locked forms) or taking it.  -EEXIST is not reported for overlaps: as in KVM,
 * ranges may overlap and the first device that takes the access wins.  -ENOSPC past 1000 devices per bus. */
int io_bus_register(struct vm *vm, enum io_bus_kind bus, u64 addr, u64 len, struct io_device *dev);
/* Removes all ranges of a device, then calls its destroy.  -ENOENT if it has none. */
int io_bus_unregister(struct vm *vm, enum io_bus_kind bus, struct io_device *dev);

/* Dispatch from a vCPU.  0 handled, -EOPNOTSUPP not. */
int io_bus_read(struct vcpu *vcpu, enum io_bus_kind bus, u64 addr, unsigned len, void *data);
int io_bus_write(struct vcpu *vcpu, enum io_bus_kind bus, u64 addr, unsigned len, const void *data);

#endif

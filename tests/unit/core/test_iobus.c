/* The buses: overlapping devices, ioeventfds in all forms, coalesced zones and their ring. */
#include "core/iobus.h"
#include "fake_arch.h"

struct chip {
  struct io_device dev;
  int reads, writes, destroyed;
  u64 last_addr;
  bool refuse;
};

static int chip_read(struct io_device *dev, struct vcpu *vcpu, u64 addr, unsigned len, void *data) {
  struct chip *c = container_of(dev, struct chip, dev);
  if (c->refuse) return -EOPNOTSUPP;
  c->reads++;
  c->last_addr = addr;
  memset(data, 0xab, len);
  return 0;
}
static int chip_write(struct io_device *dev, struct vcpu *vcpu, u64 addr, unsigned len, const void *data) {
  struct chip *c = container_of(dev, struct chip, dev);
  if (c->refuse) return -EOPNOTSUPP;
  c->writes++;
  return 0;
}
static void chip_destroy(struct io_device *dev) { container_of(dev, struct chip, dev)->destroyed++; }
static const struct io_device_ops chip_ops = {.read = chip_read, .write = chip_write, .destroy = chip_destroy};

static void devices(void **state) {
  struct machine m;
  struct chip a = {.dev.ops = &chip_ops}, b = a, c = a;
  u32 v;
  machine_up(&m, 1);
  struct vm *vm = &m.vm->core;
  struct vcpu *cpu = &m.vcpu[0]->core;
  assert_int_equal(io_bus_read(cpu, BUS_PIO, 0x60, 1, &v), -EOPNOTSUPP);
  assert_int_equal(io_bus_register(vm, BUS_PIO, 0x100, 0x100, &a.dev), 0);
  assert_int_equal(io_bus_register(vm, BUS_PIO, 0x120, 4, &b.dev), 0); /* inside a */
  assert_int_equal(io_bus_register(vm, BUS_PIO, 0x120, 4, &c.dev), 0); /* the same range */
  assert_int_equal(io_bus_read(cpu, BUS_MMIO, 0x120, 4, &v), -EOPNOTSUPP);
  assert_int_equal(io_bus_read(cpu, BUS_PIO, 0x120, 4, &v), 0);
  assert_int_equal(a.reads, 1);
  assert_int_equal(v, 0xabababab);
  a.refuse = true;
  assert_int_equal(io_bus_read(cpu, BUS_PIO, 0x120, 4, &v), 0);
  assert_int_equal(b.reads, 1);
  assert_int_equal(io_bus_read(cpu, BUS_PIO, 0x122, 4, &v), -EOPNOTSUPP); /* crosses the end */
  assert_int_equal(io_bus_read(cpu, BUS_PIO, 0x11f, 2, &v), -EOPNOTSUPP);
  b.refuse = true;
  assert_int_equal(io_bus_write(cpu, BUS_PIO, 0x123, 1, &v), 0);
  assert_int_equal(c.writes, 1);
  a.refuse = false;
  assert_int_equal(io_bus_read(cpu, BUS_PIO, 0x1ff, 1, &v), 0);
  assert_int_equal(io_bus_read(cpu, BUS_PIO, 0x200, 1, &v), -EOPNOTSUPP);
  assert_int_equal(io_bus_unregister(vm, BUS_PIO, &a.dev), 0);
  assert_int_equal(a.destroyed, 1);
  assert_int_equal(io_bus_unregister(vm, BUS_PIO, &a.dev), -ENOENT);
  assert_int_equal(io_bus_read(cpu, BUS_PIO, 0x1ff, 1, &v), -EOPNOTSUPP);
  machine_down(&m);
  assert_int_equal(b.destroyed + c.destroyed, 2);
}

static void limit(void **state) {
  struct machine m;
  machine_up(&m, 0);
  struct chip *chips = calloc(1001, sizeof(*chips));
  for (unsigned i = 0; i <= 1000; i++) {
    chips[i].dev.ops = &chip_ops;
    assert_int_equal(io_bus_register(&m.vm->core, BUS_MMIO, i * 16, 16, &chips[i].dev), i < 1000 ? 0 : -ENOSPC);
  }
  assert_int_equal(io_bus_register(&m.vm->core, BUS_PIO, 0, 16, &chips[1000].dev), 0);
  machine_down(&m);
  free(chips);
}

/* ---- ioeventfds ---- */

static int ioeventfd(struct machine *m, int fd, u64 addr, u32 len, u32 flags, u64 match) {
  struct kvm_ioeventfd a = {.datamatch = match, .addr = addr, .len = len, .fd = fd, .flags = flags};
  return call(m->vm_fd, KVM_IOEVENTFD, &a);
}

static u64 drain(int fd) {
  u64 n = 0;
  return read(fd, &n, sizeof(n)) == sizeof(n) ? n : 0;
}

#define PIO   KVM_IOEVENTFD_FLAG_PIO
#define MATCH KVM_IOEVENTFD_FLAG_DATAMATCH
#define OFF   KVM_IOEVENTFD_FLAG_DEASSIGN

static void ioeventfds(void **state) {
  struct machine m;
  machine_up(&m, 1);
  struct vcpu *cpu = &m.vcpu[0]->core;
  int e = eventfd(0, EFD_NONBLOCK), f = eventfd(0, EFD_NONBLOCK), file = memfd_create("x", 0);
  u64 v = 0x1234;
  assert_int_equal(ioeventfd(&m, e, 0x1000, 3, 0, 0), -EINVAL);
  assert_int_equal(ioeventfd(&m, e, 0x1000, 16, 0, 0), -EINVAL);
  assert_int_equal(ioeventfd(&m, e, ~0ull, 2, 0, 0), -EINVAL);
  assert_int_equal(ioeventfd(&m, e, 0x1000, 2, 1u << 4, 0), -EINVAL);
  assert_int_equal(ioeventfd(&m, e, 0x1000, 0, MATCH, 0), -EINVAL);
  assert_int_equal(ioeventfd(&m, -1, 0x1000, 2, 0, 0), -EBADF);
  assert_int_equal(ioeventfd(&m, 12345, 0x1000, 2, 0, 0), -EBADF);
  assert_int_equal(ioeventfd(&m, file, 0x1000, 2, 0, 0), -EINVAL);
  assert_int_equal(ioeventfd(&m, e, 0x1000, 2, OFF, 0), -ENOENT);
  /* data match */
  assert_int_equal(ioeventfd(&m, e, 0x1000, 2, MATCH, 0x1234), 0);
  assert_int_equal(ioeventfd(&m, f, 0x1000, 2, MATCH, 0x1234), -EEXIST);
  assert_int_equal(ioeventfd(&m, f, 0x1000, 2, 0, 0), -EEXIST);
  assert_int_equal(ioeventfd(&m, f, 0x1000, 0, 0, 0), -EEXIST);
  assert_int_equal(ioeventfd(&m, f, 0x1000, 2, MATCH, 0x1235), 0);
  assert_int_equal(ioeventfd(&m, f, 0x1000, 4, 0, 0), 0);
  assert_int_equal(ioeventfd(&m, f, 0x1000, 2, PIO, 0), 0);
  assert_int_equal(io_bus_write(cpu, BUS_MMIO, 0x1000, 2, &v), 0);
  assert_int_equal(drain(e), 1);
  assert_int_equal(drain(f), 0);
  v = 0x1235;
  assert_int_equal(io_bus_write(cpu, BUS_MMIO, 0x1000, 2, &v), 0);
  assert_int_equal(drain(f), 1);
  v = 9;
  assert_int_equal(io_bus_write(cpu, BUS_MMIO, 0x1000, 2, &v), -EOPNOTSUPP);
  assert_int_equal(io_bus_write(cpu, BUS_MMIO, 0x1000, 4, &v), 0);
  assert_int_equal(io_bus_write(cpu, BUS_MMIO, 0x1000, 8, &v), -EOPNOTSUPP);
  assert_int_equal(io_bus_write(cpu, BUS_MMIO, 0x1001, 1, &v), -EOPNOTSUPP);
  assert_int_equal(io_bus_read(cpu, BUS_MMIO, 0x1000, 4, &v), -EOPNOTSUPP);
  assert_int_equal(io_bus_write(cpu, BUS_PIO, 0x1000, 2, &v), 0);
  assert_int_equal(drain(f), 2);
  /* any length */
  assert_int_equal(ioeventfd(&m, e, 0x2000, 0, 0, 0), 0);
  for (unsigned len = 1; len <= 8; len *= 2) assert_int_equal(io_bus_write(cpu, BUS_MMIO, 0x2000, len, &v), 0);
  assert_int_equal(io_bus_write(cpu, BUS_MMIO, 0x2001, 1, &v), -EOPNOTSUPP);
  assert_int_equal(drain(e), 4);
  /* deassign: everything has to be the same, but any descriptor of the eventfd will do */
  int e2 = dup(e);
  assert_int_equal(ioeventfd(&m, f, 0x1000, 2, OFF | MATCH, 0x1234), -ENOENT);
  assert_int_equal(ioeventfd(&m, e2, 0x1000, 2, OFF, 0), -ENOENT);
  assert_int_equal(ioeventfd(&m, e2, 0x1000, 2, OFF | MATCH, 0x1234), 0);
  v = 0x1234;
  assert_int_equal(io_bus_write(cpu, BUS_MMIO, 0x1000, 2, &v), -EOPNOTSUPP);
  assert_int_equal(ioeventfd(&m, e2, 0x2000, 0, OFF, 0), 0);
  close(e2);
  close(f); /* ours keeps it */
  assert_int_equal(io_bus_write(cpu, BUS_MMIO, 0x1000, 4, &v), 0);
  close(e);
  close(file);
  machine_down(&m);
}

/* ---- coalesced ---- */

static int zone(struct machine *m, unsigned long request, u64 addr, u32 size, u32 pio) {
  struct kvm_coalesced_mmio_zone z = {.addr = addr, .size = size, .pio = pio};
  return call(m->vm_fd, request, &z);
}

static void coalesced(void **state) {
  struct machine m;
  u64 v = 0x55;
  machine_up(&m, 2);
  assert_int_equal(call(m.kvm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_COALESCED_MMIO), 2);
  struct kvm_coalesced_mmio_ring *ring = (void *)((char *)m.run[0] + 2 * PAGE_SIZE),
                                 *other = (void *)((char *)m.run[1] + 2 * PAGE_SIZE);
  struct vcpu *cpu = &m.vcpu[1]->core;
  assert_int_equal(zone(&m, KVM_REGISTER_COALESCED_MMIO, 0x1000, 0x100, 2), -EINVAL);
  assert_int_equal(zone(&m, KVM_REGISTER_COALESCED_MMIO, 0x1000, 0x100, 0), 0);
  assert_int_equal(zone(&m, KVM_REGISTER_COALESCED_MMIO, 0x70, 2, 1), 0);
  assert_int_equal(io_bus_write(cpu, BUS_MMIO, 0x1010, 4, &v), 0);
  assert_int_equal(io_bus_write(cpu, BUS_PIO, 0x70, 1, &v), 0);
  assert_int_equal(io_bus_write(cpu, BUS_MMIO, 0x10fe, 4, &v), -EOPNOTSUPP);
  assert_int_equal(io_bus_read(cpu, BUS_MMIO, 0x1010, 4, &v), -EOPNOTSUPP);
  assert_int_equal(ring->last, 2); /* one ring for the VM, in the page of every vCPU */
  assert_int_equal(other->last, 2);
  assert_int_equal(ring->coalesced_mmio[0].phys_addr, 0x1010);
  assert_int_equal(ring->coalesced_mmio[0].len, 4);
  assert_int_equal(ring->coalesced_mmio[0].data[0], 0x55);
  assert_int_equal(ring->coalesced_mmio[0].pio, 0);
  assert_int_equal(ring->coalesced_mmio[1].pio, 1);
  /* full: one entry always stays free */
  unsigned n = 2;
  while (!io_bus_write(cpu, BUS_MMIO, 0x1000, 8, &v)) n++;
  assert_int_equal(n, (PAGE_SIZE - sizeof(*ring)) / sizeof(ring->coalesced_mmio[0]) - 1);
  ring->first = 5;
  for (unsigned i = 0; i < 5; i++) assert_int_equal(io_bus_write(cpu, BUS_MMIO, 0x1000, 8, &v), 0);
  assert_int_equal(io_bus_write(cpu, BUS_MMIO, 0x1000, 8, &v), -EOPNOTSUPP);
  ring->last = 0xffffffff; /* a client that writes nonsense harms nobody else */
  assert_int_equal(io_bus_write(cpu, BUS_MMIO, 0x1000, 8, &v), -EOPNOTSUPP);
  ring->first = 0xfffffff0;
  ring->last = 0;
  assert_int_equal(io_bus_write(cpu, BUS_MMIO, 0x1000, 8, &v), 0);
  /* unregister: every zone that contains the given one */
  assert_int_equal(zone(&m, KVM_UNREGISTER_COALESCED_MMIO, 0x5000, 4, 0), 0);
  assert_int_equal(zone(&m, KVM_UNREGISTER_COALESCED_MMIO, 0x1000, 0x101, 0), 0);
  assert_int_equal(io_bus_write(cpu, BUS_MMIO, 0x1000, 8, &v), 0);
  assert_int_equal(zone(&m, KVM_UNREGISTER_COALESCED_MMIO, 0x1040, 0x10, 0), 0);
  assert_int_equal(io_bus_write(cpu, BUS_MMIO, 0x1000, 8, &v), -EOPNOTSUPP);
  machine_down(&m);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(devices), cmocka_unit_test(limit), cmocka_unit_test(ioeventfds),
                                     cmocka_unit_test(coalesced)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

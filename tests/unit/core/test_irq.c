/* Routing tables, interrupt lines, MSIs, irqfds and resampling. */
#include <time.h>
#include "base/evloop.h"
#include "fake_arch.h"

#define UNTIL(condition)                                                                                                         \
  do {                                                                                                                           \
    u64 end_ = clock_now_ns() + 5000000000ull;                                                                                   \
    while (!(condition) && clock_now_ns() < end_) nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);                        \
    assert_true(condition);                                                                                                      \
  } while (0)

static struct kvm_irq_routing_entry chip(u32 gsi, u32 irqchip, u32 pin) {
  return (struct kvm_irq_routing_entry){.gsi = gsi, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = {irqchip, pin}};
}
static struct kvm_irq_routing_entry msi(u32 gsi, u32 data) {
  return (struct kvm_irq_routing_entry){
      .gsi = gsi, .type = KVM_IRQ_ROUTING_MSI, .u.msi = {.address_lo = 0xfee00000, .data = data}};
}

static int route(struct machine *m, const struct kvm_irq_routing_entry *e, unsigned n, u32 flags) {
  struct kvm_irq_routing *r = calloc(1, sizeof(*r) + n * sizeof(*e));
  r->nr = n;
  r->flags = flags;
  if (n) memcpy(r->entries, e, n * sizeof(*e));
  int result = call(m->vm_fd, KVM_SET_GSI_ROUTING, r);
  free(r);
  return result;
}

static int line_status(struct machine *m, u32 gsi, u32 level) {
  struct kvm_irq_level l = {.irq = gsi, .level = level};
  int r = call(m->vm_fd, KVM_IRQ_LINE_STATUS, &l);
  return r ? r : (int)l.status;
}

static void routing(void **state) {
  struct machine m;
  machine_up(&m, 0);
  struct kvm_irq_routing_entry e[4] = {chip(5, 0, 5), chip(5, 2, 6), msi(40, 0x41), chip(7, 2, 63)};
  assert_int_equal(route(&m, e, 4, 0), -EINVAL); /* no chips */
  assert_int_equal(line_status(&m, 5, 1), -ENXIO);
  m.vm->irqchip = true;
  assert_int_equal(line_status(&m, 5, 1), -1); /* the default table is empty */
  assert_int_equal(route(&m, e, 4, 1), -EINVAL);
  assert_int_equal(route(&m, e, 4, 0), 0);
  assert_int_equal(m.vm->routes_changed, 1);
  assert_int_equal(line_status(&m, 5, 1), 2); /* both chips */
  assert_true(m.vm->line[5] == 1 && m.vm->line[6] == 1);
  assert_int_equal(line_status(&m, 5, 0), 2);
  assert_int_equal(m.vm->line[5], 0);
  assert_int_equal(line_status(&m, 7, 1), -1); /* masked */
  assert_int_equal(line_status(&m, 40, 1), 1);
  assert_int_equal(m.vm->last_msi_data, 0x41);
  assert_int_equal(line_status(&m, 41, 1), -1);
  assert_int_equal(line_status(&m, 0xffffffff, 1), -1);
  struct kvm_irq_level l = {.irq = 5, .level = 1};
  assert_int_equal(call(m.vm_fd, KVM_IRQ_LINE, &l), 0);
  assert_int_equal(m.vm->line[5], 1);
  /* refused tables change nothing */
  struct kvm_irq_routing_entry twice[] = {chip(5, 0, 5), chip(5, 0, 6)}, mixed[] = {chip(5, 0, 5), msi(5, 1)},
                               msis[] = {msi(5, 1), msi(5, 2)};
  struct kvm_irq_routing_entry bad_gsi = chip(4096, 0, 0), bad_chip = chip(1, 3, 0), bad_type = {.gsi = 1, .type = 99},
                               flagged = chip(1, 0, 0);
  struct kvm_irq_routing_entry msi_flags = msi(3, 1);
  flagged.flags = 1;
  msi_flags.flags = 2;
  assert_int_equal(route(&m, twice, 2, 0), -EINVAL);
  assert_int_equal(route(&m, mixed, 2, 0), -EINVAL);
  assert_int_equal(route(&m, msis, 2, 0), -EINVAL);
  assert_int_equal(route(&m, &bad_gsi, 1, 0), -EINVAL);
  assert_int_equal(route(&m, &bad_chip, 1, 0), -EINVAL);
  assert_int_equal(route(&m, &bad_type, 1, 0), -EINVAL);
  assert_int_equal(route(&m, &flagged, 1, 0), -EINVAL);
  assert_int_equal(route(&m, &msi_flags, 1, 0), -EINVAL);
  assert_int_equal(line_status(&m, 40, 1), 1);
  struct kvm_irq_routing too_many = {.nr = 4097};
  assert_int_equal(call(m.vm_fd, KVM_SET_GSI_ROUTING, &too_many), -EINVAL);
  assert_int_equal(call(m.vm_fd, KVM_SET_GSI_ROUTING, (void *)8), -EFAULT);
  struct kvm_irq_routing_entry *all = calloc(4096, sizeof(*all));
  for (u32 i = 0; i < 4096; i++) all[i] = msi(4095 - i, i);
  assert_int_equal(route(&m, all, 4096, 0), 0);
  assert_int_equal(line_status(&m, 0, 1), 1);
  assert_int_equal(m.vm->last_msi_data, 4095);
  free(all);
  assert_int_equal(route(&m, NULL, 0, 0), 0);
  assert_int_equal(line_status(&m, 0, 1), -1);
  machine_down(&m);
}

static void signal_msi(void **state) {
  struct machine m;
  machine_up(&m, 0);
  struct kvm_msi msg = {.address_lo = 0xfee00000, .data = 0x33};
  assert_int_equal(call(m.vm_fd, KVM_SIGNAL_MSI, &msg), -EINVAL);
  m.vm->irqchip = true;
  assert_int_equal(call(m.vm_fd, KVM_SIGNAL_MSI, &msg), 1);
  assert_int_equal(m.vm->last_msi_data, 0x33);
  msg.flags = 2;
  assert_int_equal(call(m.vm_fd, KVM_SIGNAL_MSI, &msg), -EINVAL);
  machine_down(&m);
}

static int irqfd(struct machine *m, int fd, u32 gsi, u32 flags, int resample) {
  struct kvm_irqfd a = {.fd = (u32)fd, .gsi = gsi, .flags = flags, .resamplefd = (u32)resample};
  return call(m->vm_fd, KVM_IRQFD, &a);
}

static void irqfds(void **state) {
  struct machine m;
  machine_up(&m, 0);
  int e = eventfd(0, 0), f = eventfd(1, 0), file = memfd_create("x", 0);
  assert_int_equal(irqfd(&m, e, 5, 0, 0), -EINVAL); /* no chips */
  m.vm->irqchip = true;
  struct kvm_irq_routing_entry r[] = {chip(5, 0, 5), chip(6, 0, 6)};
  assert_int_equal(route(&m, r, 2, 0), 0);
  assert_int_equal(irqfd(&m, e, 5, 8, 0), -EINVAL);
  assert_int_equal(irqfd(&m, -1, 5, 0, 0), -EBADF);
  assert_int_equal(irqfd(&m, file, 5, 0, 0), -EINVAL);
  assert_int_equal(irqfd(&m, e, 5, 0, 0), 0);
  int e2 = dup(e);
  assert_int_equal(irqfd(&m, e2, 6, 0, 0), -EBUSY);
  eventfd_write(e, 3);
  UNTIL(m.vm->raises[5] == 1 && m.vm->lowers[5] == 1); /* once, however often it was signalled */
  assert_int_equal(m.vm->last_source, 0);
  assert_int_equal(irqfd(&m, f, 6, 0, 0), 0); /* it was signalled before */
  UNTIL(m.vm->raises[6] == 1);
  close(e); /* the file lives on in e2 and in the VM */
  eventfd_write(e2, 1);
  UNTIL(m.vm->raises[5] == 2);
  assert_int_equal(irqfd(&m, e2, 6, KVM_IRQFD_FLAG_DEASSIGN, 0), 0); /* not its GSI: nothing happens */
  assert_int_equal(irqfd(&m, e2, 5, KVM_IRQFD_FLAG_DEASSIGN, 0), 0);
  eventfd_write(e2, 1);
  nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
  assert_int_equal(m.vm->raises[5], 2);
  assert_int_equal(irqfd(&m, file, 5, KVM_IRQFD_FLAG_DEASSIGN, 0), -EINVAL);
  assert_int_equal(irqfd(&m, e2, 6, 0, 0), 0);
  UNTIL(m.vm->raises[6] == 2);
  close(e2);
  close(f);
  close(file);
  machine_down(&m); /* ends the ones that are left */
}

static void resampling(void **state) {
  struct machine m;
  u64 n;
  machine_up(&m, 0);
  m.vm->irqchip = true;
  struct kvm_irq_routing_entry r[] = {chip(9, 2, 9)};
  assert_int_equal(route(&m, r, 1, 0), 0);
  int e = eventfd(0, 0), f = eventfd(0, 0), re = eventfd(0, EFD_NONBLOCK), rf = eventfd(0, EFD_NONBLOCK);
  assert_false(vm_has_ack_notifier(&m.vm->core, 2, 9));
  assert_int_equal(irqfd(&m, e, 9, KVM_IRQFD_FLAG_RESAMPLE, -1), -EBADF);
  assert_int_equal(irqfd(&m, e, 9, KVM_IRQFD_FLAG_RESAMPLE, re), 0);
  assert_int_equal(irqfd(&m, f, 9, KVM_IRQFD_FLAG_RESAMPLE, rf), 0);
  assert_true(vm_has_ack_notifier(&m.vm->core, 2, 9));
  assert_false(vm_has_ack_notifier(&m.vm->core, 2, 8));
  assert_false(vm_has_ack_notifier(&m.vm->core, 77, 9));
  eventfd_write(e, 1);
  UNTIL(m.vm->raises[9] == 1);
  assert_int_equal(m.vm->last_source, KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID);
  assert_int_equal(m.vm->line[9], 1); /* stays up until acknowledged */
  vm_notify_ack(&m.vm->core, 2, 8);
  assert_int_equal(m.vm->line[9], 1);
  vm_notify_ack(&m.vm->core, 2, 9);
  assert_int_equal(m.vm->line[9], 0);
  assert_int_equal(m.vm->lowers[9], 1); /* once for both */
  assert_int_equal(read(re, &n, 8), 8);
  assert_int_equal(read(rf, &n, 8), 8);
  assert_int_equal(irqfd(&m, e, 9, KVM_IRQFD_FLAG_DEASSIGN, 0), 0);
  assert_true(vm_has_ack_notifier(&m.vm->core, 2, 9));
  assert_int_equal(irqfd(&m, f, 9, KVM_IRQFD_FLAG_DEASSIGN, 0), 0);
  assert_false(vm_has_ack_notifier(&m.vm->core, 2, 9));
  close(e);
  close(f);
  close(re);
  close(rf);
  machine_down(&m);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(routing), cmocka_unit_test(signal_msi), cmocka_unit_test(irqfds),
                                     cmocka_unit_test(resampling)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

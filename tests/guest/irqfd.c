/* Interrupts by eventfd: edges, level-triggered lines with resampling at the EOI, and where they are refused. */
#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "inside.h"

#define PIN_LEVEL  0x8000u
#define PIN_MASKED 0x10000u
#define GSI        10
#define GSI_OTHER  11

static volatile u32 count, ended;

HANDLER take(struct frame *f) {
  count = count + 1;
  eoi();
}
/* Level-triggered: the line is still high until the EOI, which the host sees as the resample event. */
HANDLER take_level(struct frame *f) {
  count = count + 1;
  report(2);
  eoi();
  ended = ended + 1;
  report(3);
}

static void guest_level(void) {
  apic_on();
  pic_off();
  ioapic_pin(GSI, PIN_LEVEL | 0x70);
  ioapic_pin(GSI_OTHER, PIN_LEVEL | PIN_MASKED | 0x71);
  sti();
  report(1);
  for (;;) relax();
}
static void guest_edge(void) {
  apic_on();
  pic_off();
  ioapic_pin(GSI, 0x70);
  sti();
  for (u32 n = 1; n < 20; n++) {
    report(1);
    wait_count(&count, n);
    EXPECT_EQ(count, n);
  }
  done();
}

/* ---- host side ---- */

static struct guest *start(void (*f)(void)) {
  struct guest *g = start_function(f);
  alarm(300);
  inside_catch(g);
  count = ended = 0;
  return g;
}

static int assign(struct guest *g, int fd, u32 gsi, u32 flags, int resample) {
  struct kvm_irqfd a = {.fd = (u32)fd, .gsi = gsi, .flags = flags, .resamplefd = (u32)resample};
  return guest_ioctl(g->vm, KVM_IRQFD, &a) < 0 ? -errno : 0;
}
static void signal_fd(int fd) {
  u64 one = 1;
  CHECK_EQ(write(fd, &one, sizeof(one)), sizeof(one));
}
/* Whether it was signalled, within a while where that must come. */
static bool taken(int fd, int wait_ms) {
  struct pollfd p = {.fd = fd, .events = POLLIN};
  u64 v;
  return poll(&p, 1, wait_ms) == 1 && read(fd, &v, sizeof(v)) == sizeof(v);
}

static void edge(void) {
  struct guest *g = start(guest_edge);
  int fd = eventfd(0, EFD_NONBLOCK);
  unsigned r;
  HANDLE(g, 0x70, take);
  CHECK_EQ(assign(g, fd, GSI, 0, 0), 0);
  while ((r = guest_next(g)) == 1) signal_fd(fd);
  CHECK_EQ(r, DONE);
  inside_check();
  close(fd);
  guest_free(g);
}

static bool is_up(struct guest *g, unsigned pin) {
  struct kvm_irqchip chip = {.chip_id = KVM_IRQCHIP_IOAPIC};
  CHECK_EQ(guest_ioctl(g->vm, KVM_GET_IRQCHIP, &chip), 0);
  return chip.chip.ioapic.irr >> pin & 1;
}

/* Until whatever was signalled before has arrived: signals are taken in their order, and this one's can be seen. */
static void last_arrives(struct guest *g) {
  int fd = eventfd(0, EFD_NONBLOCK), again = eventfd(0, EFD_NONBLOCK);
  CHECK_EQ(assign(g, fd, GSI_OTHER, KVM_IRQFD_FLAG_RESAMPLE, again), 0);
  signal_fd(fd);
  for (unsigned n = 0; !is_up(g, GSI_OTHER) && n < 300000; n++) usleep(100);
  CHECK(is_up(g, GSI_OTHER));
  CHECK_EQ(assign(g, fd, GSI_OTHER, KVM_IRQFD_FLAG_DEASSIGN, 0), 0);
  close(fd), close(again);
}

/* Two sources share the line: an EOI lowers it and tells both; who still wants attention signals again. */
static void resample(void) {
  struct guest *g = start(guest_level);
  int fd[2], again[2];
  HANDLE(g, 0x70, take_level);
  for (unsigned n = 0; n < 2; n++) {
    fd[n] = eventfd(0, EFD_NONBLOCK);
    again[n] = eventfd(0, EFD_NONBLOCK);
    CHECK_EQ(assign(g, fd[n], GSI, KVM_IRQFD_FLAG_RESAMPLE, again[n]), 0);
  }
  CHECK_EQ(guest_next(g), 1);
  for (unsigned n = 1; n <= 6; n++) {
    signal_fd(fd[n & 1]);
    CHECK_EQ(guest_next(g), 2);
    CHECK_EQ(count, n);
    CHECK(!taken(again[0], 0)); /* not before the EOI */
    CHECK_EQ(guest_next(g), 3);
    CHECK(taken(again[0], 0));
    CHECK(taken(again[1], 0));
    CHECK(!taken(again[0], 0)); /* once */
    CHECK_EQ(ended, n);
  }
  /* Both at once are one interrupt. */
  signal_fd(fd[0]);
  signal_fd(fd[1]);
  CHECK_EQ(guest_next(g), 2);
  last_arrives(g);
  CHECK_EQ(guest_next(g), 3);
  CHECK_EQ(count, 7);
  /* Without its irqfds the line stays low. */
  for (unsigned n = 0; n < 2; n++) CHECK_EQ(assign(g, fd[n], GSI, KVM_IRQFD_FLAG_DEASSIGN, 0), 0);
  for (unsigned n = 0; n < 2; n++) close(fd[n]), close(again[n]);
  guest_free(g);
}

/* Refused: no chips; resampling where the EOIs are the client's; unknown flags; the same eventfd twice. */
static void refused(void) {
  int fd = eventfd(0, EFD_NONBLOCK), other = eventfd(0, EFD_NONBLOCK);
  struct guest *g = guest_new();
  CHECK_EQ(assign(g, fd, GSI, 0, 0), -EINVAL);
  CHECK_EQ(assign(g, fd, GSI, KVM_IRQFD_FLAG_RESAMPLE, other), -EINVAL);
  guest_free(g);
  g = guest_new_split();
  CHECK_EQ(assign(g, fd, GSI, KVM_IRQFD_FLAG_RESAMPLE, other), -EINVAL);
  CHECK_EQ(assign(g, fd, GSI, 0, 0), 0);
  CHECK_EQ(assign(g, fd, GSI, 0, 0), -EBUSY);
  CHECK_EQ(assign(g, fd, GSI, KVM_IRQFD_FLAG_DEASSIGN, 0), 0);
  guest_free(g);
  g = guest_new_chips();
  CHECK_EQ(assign(g, fd, GSI, 4, 0), -EINVAL);
  CHECK_EQ(assign(g, fd, GSI, KVM_IRQFD_FLAG_RESAMPLE, -1), -EBADF);
  CHECK_EQ(assign(g, fd, GSI, KVM_IRQFD_FLAG_RESAMPLE, other), 0);
  guest_free(g);
  close(fd);
  close(other);
}

GUEST_MAIN({"edge", edge}, {"resample", resample}, {"refused", refused})

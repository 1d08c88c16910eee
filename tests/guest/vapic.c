/* Help for clients that patch TPR accesses: reports of them, and the word of guest memory that stands for the TPR
 * (api.rst, KVM_TPR_ACCESS_REPORTING and KVM_SET_VAPIC_ADDR). */
#include <errno.h>
#include "inside.h"

#define WORD GUEST_DATA

static volatile u32 taken;
HANDLER on_interrupt(struct frame *f) {
  (void)f;
  taken = taken + 1;
  eoi();
}

/* ---- reports ---- */

extern const u8 tpr_load[], tpr_store[], tpr_behind[];
static void guest_accesses(void) {
  apic_on();
  __asm__ volatile("tpr_load: mov (%0), %%eax\n"
                   "add $0x20, %%eax\n"
                   "tpr_store: mov %%eax, (%0)\n"
                   "tpr_behind: mov (%0), %%ecx\n" ::"r"(APIC_PAGE + A_TPR)
                   : "eax", "ecx", "memory");
  done();
}

static void expect_access(struct guest *g, const u8 *at, const u8 *next, bool write) {
  CHECK_EQ(guest_run(g), 0);
  CHECK_EQ(g->run->exit_reason, KVM_EXIT_TPR_ACCESS);
  CHECK_EQ(g->run->tpr_access.rip, (u64)(uintptr_t)at);
  CHECK_EQ(g->run->tpr_access.is_write, write);
  if (next) CHECK_EQ(guest_regs(g).rip, (u64)(uintptr_t)next); /* the access is done, nothing after it */
}

static void reports(void) {
  struct guest *g = start_function(guest_accesses);
  struct kvm_tpr_access_ctl ctl = {.enabled = 1, .flags = 1};
  CHECK_EQ(guest_ioctl(g->sys, KVM_CHECK_EXTENSION, (void *)KVM_CAP_VAPIC), 1);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_TPR_ACCESS_REPORTING, &ctl), -1);
  CHECK_EQ(errno, EINVAL);
  ctl.flags = 0;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_TPR_ACCESS_REPORTING, &ctl), 0);
  expect_access(g, tpr_load, tpr_load + 2, false);
  expect_access(g, tpr_store, tpr_behind, true);
  ctl.enabled = 0;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_TPR_ACCESS_REPORTING, &ctl), 0);
  CHECK_EQ(guest_next(g), DONE);
  CHECK_EQ(guest_regs(g).rcx & 0xff, 0x20);
  guest_free(g);
}

/* ---- the word ---- */

static void poll_irq(void) {
  u64 nr = 1; /* KVM_HC_VAPIC_POLL_IRQ */
  __asm__ volatile("vmcall" : "+a"(nr)::"memory");
  EXPECT_EQ(nr, 0);
}

static void guest_word(void) {
  volatile u32 *word = (u32 *)WORD;
  apic_on();
  cli();
  apic_write(A_TPR, 0x10);
  ipi(0, 0x31 | ICR_TO_SELF);
  poll_irq();
  sti();
  settle();
  EXPECT_EQ(taken, 1);
  EXPECT_EQ(*word & 0xff, 0x10);
  cli();
  *(volatile u8 *)word = 0x40;
  poll_irq();
  EXPECT_EQ(apic_read(A_TPR), 0x40);
  ipi(0, 0x31 | ICR_TO_SELF);
  sti();
  poll_irq();
  EXPECT_EQ(taken, 1); /* masked */
  EXPECT_EQ(*word, 0x31000040);
  *(volatile u8 *)word = 0;
  EXPECT_EQ(taken, 1); /* nobody looked yet */
  poll_irq();
  settle();
  EXPECT_EQ(taken, 2);
  done();
}

static void word(void) {
  struct guest *g = start_function(guest_word);
  struct kvm_vapic_addr va = {.vapic_addr = 0x7ffffffff000};
  taken = 0;
  inside_catch(g);
  HANDLE(g, 0x31, on_interrupt);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_VAPIC_ADDR, &va), -1);
  CHECK_EQ(errno, EINVAL);
  va.vapic_addr = WORD;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_VAPIC_ADDR, &va), 0);
  inside_run(g);
}

static void without_apic(void) {
  struct guest *g = guest_new();
  struct kvm_vapic_addr va = {.vapic_addr = WORD};
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_VAPIC_ADDR, &va), -1);
  CHECK_EQ(errno, EINVAL);
  guest_free(g);
}

GUEST_MAIN({"reports", reports}, {"word", word}, {"without-apic", without_apic})

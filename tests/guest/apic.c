/* One vCPU's interrupts: local APIC timer, priorities and modes, PIT, I/O APIC pins, MSIs, NMIs. */
#include <pthread.h>
#include <string.h>
#include <unistd.h>
#include "lapic.h"

static volatile u32 count[256];
static volatile u8 order[16];
static volatile u32 ordered;
static volatile u64 at[8]; /* what the guest saw */
static volatile u32 faults;

static void took(u8 vector) {
  count[vector]++;
  if (ordered < sizeof(order)) order[ordered++] = vector;
}

#define SIMPLE(vector)                                                                                                           \
  HANDLER take_##vector(struct frame *f) {                                                                                       \
    took(vector);                                                                                                                \
    eoi();                                                                                                                       \
  }
SIMPLE(0x40)
SIMPLE(0x51)
SIMPLE(0x55)
SIMPLE(0x62)
SIMPLE(0x71)
HANDLER take_spurious(struct frame *f) {
  took(0xff);
}

/* In x2APIC mode. */
HANDLER take_x2(struct frame *f) {
  took(0x52);
  wrmsr(X2(A_EOI), 0);
}

/* Behind RDMSR or WRMSR. */
HANDLER take_gp(struct frame *f, u64 error) {
  faults++;
  f->rip += 2;
}

static struct guest *start(void (*f)(void)) {
  memset((void *)(uintptr_t)count, 0, sizeof(count));
  memset((void *)(uintptr_t)order, 0, sizeof(order));
  memset((void *)(uintptr_t)at, 0, sizeof(at));
  ordered = faults = 0;
  alarm(300);
  struct guest *g = start_function(f);
  HANDLE(g, 0x40, take_0x40);
  HANDLE(g, 0x51, take_0x51);
  HANDLE(g, 0x52, take_x2);
  HANDLE(g, 0x55, take_0x55);
  HANDLE(g, 0x62, take_0x62);
  HANDLE(g, 0x71, take_0x71);
  HANDLE(g, 0xff, take_spurious);
  return g;
}

static void run_whole(void (*f)(void)) {
  struct guest *g = start(f);
  CHECK_EQ(guest_next(g), DONE);
  guest_free(g);
}

/* ---- timer: the bus clock is 1 GHz ---- */

static u64 ms_of(u64 tsc) {
  return tsc / ticks_per_ms + 1;
}

static void guest_oneshot(void) {
  apic_on();
  sti();
  apic_write(A_TDCR, 0xb); /* by 1 */
  apic_write(A_LVT_TIME, 0x40);
  u64 t = rdtsc();
  apic_write(A_TMICT, ~0u);
  u32 left = apic_read(A_TMCCT);
  at[0] = left && ~0u - left <= ms_of(rdtsc() - t) * 1000000;
  t = rdtsc();
  apic_write(A_TMICT, 20000000);
  wait_count(&count[0x40], 1);
  at[1] = rdtsc() - t;
  at[2] = apic_read(A_TMCCT);
  wait_ms(5);
  at[3] = count[0x40];
  apic_write(A_TDCR, 3); /* by 16 */
  t = rdtsc();
  apic_write(A_TMICT, 125000);
  wait_count(&count[0x40], 2);
  at[4] = rdtsc() - t;
  t = rdtsc();
  apic_write(A_TMICT, 6250000);
  apic_write(A_TMICT, 0); /* stops it */
  at[5] = rdtsc() - t;
  wait_ms(105);
  at[6] = count[0x40];
  apic_write(A_LVT_TIME, 0x10040); /* masked */
  apic_write(A_TDCR, 0xb);
  apic_write(A_TMICT, 100000);
  wait_ms(2);
  done();
}

static void timer_oneshot(void) {
  run_whole(guest_oneshot);
  CHECK_EQ(at[0], 1);
  CHECK(at[1] >= ticks_per_ms * 199 / 10);
  CHECK_EQ(at[2], 0);
  CHECK_EQ(at[3], 1);
  CHECK(at[4] >= ticks_per_ms * 199 / 100);
  if (at[5] < 100 * ticks_per_ms) CHECK_EQ(at[6], 2); /* or the host kept the vCPU between the two */
  CHECK_EQ(count[0x40], at[6]);
}

static void guest_periodic(void) {
  apic_on();
  sti();
  apic_write(A_TDCR, 0xb);
  apic_write(A_LVT_TIME, 0x20040);
  u64 t = rdtsc();
  apic_write(A_TMICT, 1000000);
  wait_count(&count[0x40], 10);
  at[0] = rdtsc() - t;
  apic_write(A_TMICT, 0);
  at[1] = count[0x40];
  wait_ms(5);
  at[2] = count[0x40];
  done();
}

static void timer_periodic(void) {
  run_whole(guest_periodic);
  CHECK(at[0] >= ticks_per_ms * 99 / 10);
  CHECK(at[1] >= 10);
  CHECK(at[2] <= at[1] + 1); /* one may have been on its way */
  CHECK_EQ(ordered, at[2] < sizeof(order) ? at[2] : sizeof(order));
}

static void guest_deadline(void) {
  apic_on();
  sti();
  apic_write(A_LVT_TIME, 0x40040);
  u64 due = rdtsc() + 2 * ticks_per_ms;
  wrmsr(MSR_TSC_DEADLINE, due);
  at[0] = rdmsr(MSR_TSC_DEADLINE) == due || rdtsc() >= due;
  wait_count(&count[0x40], 1);
  at[1] = rdtsc() >= due;
  at[2] = rdmsr(MSR_TSC_DEADLINE);
  wrmsr(MSR_TSC_DEADLINE, 1); /* long ago */
  wait_count(&count[0x40], 2);
  at[3] = count[0x40];
  due = rdtsc() + 100 * ticks_per_ms;
  wrmsr(MSR_TSC_DEADLINE, due);
  wrmsr(MSR_TSC_DEADLINE, 0);
  at[6] = rdtsc() < due;
  wait_ms(105);
  at[4] = count[0x40];
  apic_write(A_TMICT, 1000); /* has no meaning now */
  at[5] = apic_read(A_TMCCT);
  wait_ms(1);
  done();
}

static void timer_deadline(void) {
  run_whole(guest_deadline);
  CHECK_EQ(at[0], 1);
  CHECK_EQ(at[1], 1);
  CHECK_EQ(at[2], 0);
  CHECK_EQ(at[3], 2);
  if (at[6]) CHECK_EQ(at[4], 2); /* or the host kept the vCPU between the two */
  CHECK_EQ(at[5], 0);
  CHECK_EQ(count[0x40], at[4]);
}

static void guest_halt(void) {
  apic_on();
  apic_write(A_TDCR, 0xb);
  apic_write(A_LVT_TIME, 0x40);
  for (unsigned n = 0; n < 20; n++) {
    apic_write(A_TMICT, n & 1 ? 500 : 1000000); /* at times it comes before the HLT */
    while (count[0x40] <= n) halt_once();
  }
  apic_write(A_LVT_TIME, 0x40040);
  for (unsigned n = 20; n < 40; n++) {
    wrmsr(MSR_TSC_DEADLINE, rdtsc() + (n & 1 ? 1000 : ticks_per_ms));
    while (count[0x40] <= n) halt_once();
  }
  done();
}

static void halt_wakes(void) {
  run_whole(guest_halt);
  CHECK_EQ(count[0x40], 40);
}

/* ---- priorities ---- */

static void self(u32 vector) {
  ipi(0, ICR_TO_SELF | vector);
}

static void guest_order(void) {
  apic_on();
  self(0x51);
  self(0x62);
  self(0x55);
  self(0x51); /* the same request */
  at[0] = apic_bit(A_IRR, 0x51) && apic_bit(A_IRR, 0x55) && apic_bit(A_IRR, 0x62);
  sti();
  wait_count(&ordered, 3);
  at[1] = apic_bit(A_IRR, 0x51) || apic_bit(A_IRR, 0x55) || apic_bit(A_IRR, 0x62);
  at[2] = apic_bit(A_ISR, 0x51) || apic_bit(A_ISR, 0x55) || apic_bit(A_ISR, 0x62);
  at[3] = apic_read(A_PPR);
  done();
}

static void priority_order(void) {
  run_whole(guest_order);
  CHECK_EQ(at[0], 1);
  CHECK_EQ(at[1], 0);
  CHECK_EQ(at[2], 0);
  CHECK_EQ(at[3], 0);
  CHECK_EQ(ordered, 3);
  CHECK_EQ(order[0], 0x62);
  CHECK_EQ(order[1], 0x55);
  CHECK_EQ(order[2], 0x51);
}

/* In service: its class waits for the EOI, a higher class does not. */
HANDLER nest(struct frame *f) {
  took(0x53);
  self(0x55);
  self(0x62);
  sti();
  settle();
  at[0] = ordered; /* 0x62 came */
  at[1] = apic_read(A_PPR);
  at[2] = apic_bit(A_ISR, 0x53) && apic_bit(A_IRR, 0x55);
  eoi();
  settle();
  at[3] = ordered; /* and 0x55 now */
  cli();
}

static void guest_nesting(void) {
  apic_on();
  self(0x53);
  sti();
  done();
}

static void nesting(void) {
  struct guest *g = start(guest_nesting);
  HANDLE(g, 0x53, nest);
  CHECK_EQ(guest_next(g), DONE);
  CHECK_EQ(at[0], 2);
  CHECK_EQ(at[1], 0x50);
  CHECK_EQ(at[2], 1);
  CHECK_EQ(at[3], 3);
  CHECK_EQ(order[1], 0x62);
  CHECK_EQ(order[2], 0x55);
  guest_free(g);
}

static void guest_tpr(void) {
  apic_on();
  sti();
  write_cr8(6);
  at[0] = apic_read(A_TPR) << 8 | apic_read(A_PPR);
  self(0x62);
  self(0x71);
  wait_ms(1);
  at[1] = ordered;
  at[2] = apic_bit(A_IRR, 0x62);
  write_cr8(5);
  settle();
  at[3] = ordered;
  apic_write(A_TPR, 0x7f);
  at[4] = read_cr8();
  self(0x71);
  self(0x62);
  wait_ms(1);
  at[5] = ordered;
  apic_write(A_TPR, 0x6f);
  wait_ms(1);
  at[6] = ordered;
  apic_write(A_TPR, 0);
  wait_ms(1);
  at[7] = ordered;
  done();
}

static void tpr_masks(void) {
  run_whole(guest_tpr);
  CHECK_EQ(at[0], 0x6060);
  CHECK_EQ(at[1], 1);
  CHECK_EQ(order[0], 0x71);
  CHECK_EQ(at[2], 1);
  CHECK_EQ(at[3], 2);
  CHECK_EQ(order[1], 0x62);
  CHECK_EQ(at[4], 7);
  CHECK_EQ(at[5], 2);
  CHECK_EQ(at[6], 3);
  CHECK_EQ(order[2], 0x71);
  CHECK_EQ(at[7], 4);
  CHECK_EQ(order[3], 0x62);
}

/* ---- the spurious vector register ---- */

static void guest_spurious(void) {
  apic_on();
  at[0] = apic_read(A_SVR);
  self(0x51);
  write_cr8(15); /* before it can be taken */
  sti();
  wait_ms(1);
  at[1] = count[0x51];
  at[2] = apic_bit(A_ISR, 0x51) || apic_bit(A_ISR, 0xff);
  write_cr8(0);
  wait_ms(1);
  at[3] = count[0x51];
  apic_write(A_LVT_TIME, 0x40);
  apic_write(A_SVR, 0xff); /* off: all LVT entries masked and no IPI accepted */
  at[4] = apic_read(A_LVT_TIME);
  apic_write(A_LVT_TIME, 0x40);
  at[5] = apic_read(A_LVT_TIME);
  self(0x51);
  apic_on();
  wait_ms(1);
  at[6] = apic_read(A_LVT_TIME);
  at[7] = count[0x51];
  done();
}

static void spurious(void) {
  run_whole(guest_spurious);
  CHECK_EQ(at[0], 0x1ff);
  CHECK_EQ(at[1], 0);
  CHECK_EQ(at[2], 0);
  CHECK_EQ(at[3], 1);
  CHECK_EQ(at[4], 0x10040);
  CHECK_EQ(at[5], 0x10040);
  CHECK_EQ(at[6], 0x10040);
  CHECK_EQ(at[7], 1);
}

/* ---- IPIs to itself ---- */

static void guest_self(void) {
  apic_on();
  sti();
  self(0x51);
  settle();
  at[0] = count[0x51];
  ipi(apic_read(A_ID) >> 24, 0x51);
  settle();
  at[1] = count[0x51];
  ipi(0xff, 0x51);
  settle();
  at[2] = count[0x51];
  apic_write(A_DFR, 0xffffffff);
  apic_write(A_LDR, 0x04000000);
  ipi(0x06, ICR_LOGICAL | 0x51);
  settle();
  at[3] = count[0x51];
  ipi(0x08, ICR_LOGICAL | 0x51); /* not this one */
  ipi(0x55, 0x51);
  ipi(0, ICR_TO_OTHERS | 0x51);
  wait_ms(1);
  at[4] = count[0x51];
  done();
}

static void self_xapic(void) {
  run_whole(guest_self);
  for (unsigned n = 0; n < 4; n++) CHECK_EQ(at[n], n + 1);
  CHECK_EQ(at[4], 4);
}

static void guest_self_x2(void) {
  x2apic_on();
  sti();
  at[0] = rdmsr(X2(A_ID)) << 32 | rdmsr(X2(A_LDR));
  wrmsr(0x83f, 0x52);
  settle();
  at[1] = count[0x52];
  wrmsr(X2(A_ICR), ICR_TO_SELF | 0x52);
  settle();
  at[2] = count[0x52];
  wrmsr(X2(A_ICR), rdmsr(X2(A_ID)) << 32 | 0x52);
  settle();
  at[3] = count[0x52];
  wrmsr(X2(A_ICR), rdmsr(X2(A_LDR)) << 32 | ICR_LOGICAL | 0x52);
  settle();
  at[4] = count[0x52];
  wrmsr(X2(A_ICR), 0xffffffffull << 32 | 0x52);
  settle();
  at[5] = count[0x52];
  wrmsr(X2(A_ICR), 0xffull << 32 | 0x52); /* nobody */
  wrmsr(X2(A_ICR), 0x00010001ull << 32 | ICR_LOGICAL | 0x52);
  wait_ms(1);
  at[6] = count[0x52];
  cli();
  wrmsr(0x83f, 0x52);
  at[7] = rdmsr(X2(A_IRR) + 2) == 1u << 0x12;
  sti();
  done();
}

static void self_x2apic(void) {
  run_whole(guest_self_x2);
  CHECK_EQ(at[0], 1); /* ID 0, cluster 0, bit 0 */
  for (unsigned n = 1; n < 6; n++) CHECK_EQ(at[n], n);
  CHECK_EQ(at[6], 5);
  CHECK_EQ(at[7], 1);
  CHECK_EQ(count[0x52], 6);
}

/* ---- x2APIC: what is #GP(0) ---- */

static const struct {
  u32 msr;
  u64 value;
} x2_bad_writes[] = {
    {X2(A_ID), 0},
    {0x803, 0}, /* version */
    {X2(A_TPR), 0x100},
    {X2(A_PPR), 0},
    {X2(A_EOI), 1},
    {X2(A_LDR), 0},
    {X2(A_DFR), 0xffffffff},
    {X2(A_SVR), 0x80000000},
    {X2(A_ISR), 0},
    {X2(A_IRR), 0},
    {0x828, 1}, /* ESR */
    {X2(A_ICR), 0x100000},
    {X2(A_ICR2), 0},
    {X2(A_LVT_TIME), 0x100040},
    {X2(A_LVT_TIME), 1ull << 32 | 0x10040},
    {X2(A_TMICT), 1ull << 32},
    {X2(A_TMCCT), 0},
    {X2(A_TDCR), 0x10},
    {0x83f, 0x100}, /* self IPI */
    {0x840, 0},
    {0x8ff, 0},
    {MSR_APIC_BASE, APIC_PAGE | 0x900},     /* x2APIC to xAPIC */
    {MSR_APIC_BASE, APIC_PAGE | 0x500},     /* x2APIC without APIC */
    {MSR_APIC_BASE, APIC_PAGE | 0xd00 | 1}, /* reserved */
    {MSR_APIC_BASE, 1ull << 63 | APIC_PAGE | 0xd00},
};
#define N_BAD_WRITES (sizeof(x2_bad_writes) / sizeof(x2_bad_writes[0]))
static const u32 x2_bad_reads[] = {X2(A_EOI), X2(A_DFR), X2(A_ICR2), 0x83f, 0x801, 0x840, 0x8ff};
#define N_BAD_READS (sizeof(x2_bad_reads) / sizeof(x2_bad_reads[0]))
static volatile u8 faulted[N_BAD_WRITES + N_BAD_READS];

static volatile u32 wide;

static void guest_x2_faults(void) {
  apic_on();
  rdmsr(X2(A_TPR)); /* not in this mode */
  at[0] = faults;
  x2apic_on();
  at[1] = faults;
  for (unsigned n = 0; n < N_BAD_WRITES; n++) {
    u32 before = faults;
    wrmsr(x2_bad_writes[n].msr, x2_bad_writes[n].value);
    faulted[n] = faults - before == 1;
  }
  for (unsigned n = 0; n < N_BAD_READS; n++) {
    u32 before = faults;
    rdmsr(x2_bad_reads[n]);
    faulted[N_BAD_WRITES + n] = faults - before == 1;
  }
  at[2] = rdmsr(X2(A_TPR));
  faults = 0;
  wrmsr(X2(A_TPR), 0xff);
  wrmsr(X2(A_EOI), 0);
  wrmsr(0x828, 0);
  wrmsr(X2(A_ICR), 0x1100000000 | ICR_ASSERT | 0x40); /* to nobody */
  at[3] = rdmsr(X2(A_ICR));
  wrmsr(MSR_APIC_BASE, APIC_PAGE | 0x100); /* off; then x2APIC only by way of xAPIC */
  at[4] = faults;
  wrmsr(MSR_APIC_BASE, APIC_PAGE | 0xd00);
  at[5] = faults;
  wrmsr(MSR_APIC_BASE, APIC_PAGE | 0x900);
  wrmsr(MSR_APIC_BASE, APIC_PAGE | 0xd00);
  at[6] = faults;
  at[7] = rdmsr(MSR_APIC_BASE);
  wide = apic_read(A_ID); /* no page in x2APIC mode: KVM_X86_QUIRK_LAPIC_MMIO_HOLE */
  done();
}

static void x2apic_faults(void) {
  struct guest *g = start(guest_x2_faults);
  HANDLE(g, 13, take_gp);
  CHECK_EQ(guest_next(g), DONE);
  CHECK_EQ(at[0], 1);
  CHECK_EQ(at[1], 1);
  for (unsigned n = 0; n < N_BAD_WRITES; n++)
    if (!faulted[n]) check_failed(__FILE__, __LINE__, "write without #GP", x2_bad_writes[n].msr, x2_bad_writes[n].value);
  for (unsigned n = 0; n < N_BAD_READS; n++)
    if (!faulted[N_BAD_WRITES + n]) check_failed(__FILE__, __LINE__, "read without #GP", x2_bad_reads[n], 0);
  CHECK_EQ(at[2], 0);
  CHECK_EQ(at[3], 0x1100000000 | ICR_ASSERT | 0x40);
  CHECK_EQ(at[4], 0);
  CHECK_EQ(at[5], 1);
  CHECK_EQ(at[6], 1);
  CHECK_EQ(at[7], APIC_PAGE | 0xd00);
  CHECK_EQ(wide, 0xffffffff);
  guest_free(g);
}

/* ---- PIT channel 0: GSI 0, I/O APIC pin 0 ---- */

static void pit_program(u8 control, u16 value) {
  outb(0x43, control);
  outb(0x40, (u8)value);
  outb(0x40, (u8)(value >> 8));
}

static void guest_pit(void) {
  apic_on();
  pic_off();
  sti();
  ioapic_pin(0, 0x71);
  u64 t = rdtsc();
  pit_program(0x34, 1193); /* mode 2, 1 ms */
  wait_count(&count[0x71], 10);
  at[0] = rdtsc() - t;
  ioapic_pin(0, 0x10071);
  pit_program(0x30, 1);
  wait_ms(2); /* what was on its way comes, and nothing more */
  at[1] = count[0x71];
  ioapic_pin(0, 0x71);
  pit_program(0x30, 2386); /* mode 0: the end of the count, once */
  wait_count(&count[0x71], (u32)at[1] + 1);
  wait_ms(5);
  at[2] = count[0x71];
  ioapic_pin(0, 0x10071);
  pit_program(0x34, 1193);
  wait_ms(5);
  at[3] = count[0x71];
  done();
}

static void pit(void) {
  run_whole(guest_pit);
  CHECK(at[0] >= ticks_per_ms * 9);
  CHECK(at[1] >= 10);
  CHECK_EQ(at[2], at[1] + 1);
  CHECK_EQ(at[3], at[2]);
  CHECK_EQ(count[0x51], 0);
}

/* ---- I/O APIC pins ---- */

static void line(struct guest *g, unsigned gsi, unsigned level) {
  struct kvm_irq_level l = {.irq = gsi, .level = level};
  CHECK_EQ(guest_ioctl(g->vm, KVM_IRQ_LINE, &l), 0);
}

#define PIN_LEVEL  0x8000u
#define PIN_REMOTE 0x4000u
#define PIN_MASKED 0x10000u

HANDLER take_level(struct frame *f) {
  took(0x75);
  u32 remote = ioapic_read(0x10 + 10 * 2) & PIN_REMOTE;
  at[count[0x75]] = (remote ? 1u : 0) | (apic_bit(A_TMR, 0x75) ? 2u : 0) | (apic_bit(A_ISR, 0x75) ? 4u : 0);
  report((u8)(0x10 + count[0x75]));
  eoi();
}

static void guest_level(void) {
  apic_on();
  pic_off();
  sti();
  ioapic_pin(10, PIN_LEVEL | 0x75);
  report(1); /* the line goes up */
  wait_count(&count[0x75], 2);
  wait_ms(2);
  at[4] = ioapic_read(0x10 + 10 * 2);
  ioapic_pin(10, PIN_MASKED | PIN_LEVEL | 0x75);
  report(2); /* and again, masked */
  wait_ms(2);
  at[5] = count[0x75];
  ioapic_pin(10, PIN_LEVEL | 0x75);
  wait_count(&count[0x75], 3);
  at[6] = ioapic_read(0x10 + 10 * 2);
  done();
}

static void line_level(void) {
  struct guest *g = start(guest_level);
  HANDLE(g, 0x75, take_level);
  CHECK_EQ(guest_next(g), 1);
  line(g, 10, 1);
  CHECK_EQ(guest_next(g), 0x11);
  line(g, 10, 1);                /* nothing new */
  CHECK_EQ(guest_next(g), 0x12); /* still high at the EOI */
  line(g, 10, 0);
  CHECK_EQ(guest_next(g), 2);
  line(g, 10, 1);
  CHECK_EQ(guest_next(g), 0x13);
  line(g, 10, 0);
  CHECK_EQ(guest_next(g), DONE);
  for (unsigned n = 1; n <= 3; n++) CHECK_EQ(at[n], 7);
  CHECK_EQ(at[4], PIN_LEVEL | 0x75);
  CHECK_EQ(at[5], 2);
  CHECK_EQ(at[6], PIN_LEVEL | 0x75);
  CHECK_EQ(count[0x75], 3);
  guest_free(g);
}

static void guest_edge(void) {
  apic_on();
  pic_off();
  sti();
  ioapic_pin(11, 0x71);
  for (u8 n = 1; n < 5; n++) {
    report(n);
    wait_ms(1);
    at[n] = count[0x71];
  }
  done();
}

static void line_edge(void) {
  struct guest *g = start(guest_edge);
  CHECK_EQ(guest_next(g), 1);
  line(g, 11, 1);
  CHECK_EQ(guest_next(g), 2);
  line(g, 11, 1);
  CHECK_EQ(guest_next(g), 3);
  line(g, 11, 0);
  CHECK_EQ(guest_next(g), 4);
  line(g, 11, 1);
  CHECK_EQ(guest_next(g), DONE);
  CHECK_EQ(at[1], 1);
  CHECK_EQ(at[2], 1);
  CHECK_EQ(at[3], 1);
  CHECK_EQ(at[4], 2);
  guest_free(g);
}

/* ---- MSIs ---- */

static void guest_msi(void) {
  apic_on();
  apic_write(A_DFR, 0xffffffff);
  apic_write(A_LDR, 0x02000000);
  sti();
  report(1);
  at[0] = count[0x51];
  report(2);
  at[1] = count[0x55];
  report(3);
  at[2] = ordered;
  done();
}

static int msi(struct guest *g, u32 address, u32 data) {
  struct kvm_msi m = {.address_lo = 0xfee00000 | address, .data = data};
  return guest_ioctl(g->vm, KVM_SIGNAL_MSI, &m);
}

static void signal_msi(void) {
  struct guest *g = start(guest_msi);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(msi(g, 0, 0x51), 1);
  CHECK_EQ(guest_next(g), 2);
  CHECK_EQ(msi(g, 0x3 << 12 | 4, 0x55), 1); /* logical */
  CHECK_EQ(guest_next(g), 3);
  CHECK(msi(g, 0x20 << 12, 0x55) <= 0); /* nobody */
  CHECK(msi(g, 0x4 << 12 | 4, 0x55) <= 0);
  CHECK_EQ(guest_next(g), DONE);
  CHECK_EQ(at[0], 1);
  CHECK_EQ(at[1], 1);
  CHECK_EQ(at[2], 2);
  guest_free(g);
}

/* ---- NMIs ---- */

HANDLER take_nmi(struct frame *f) {
  took(2);
}

static void guest_nmi(void) {
  apic_on();
  report(1); /* IF is clear */
  settle();
  at[0] = count[2];
  self(ICR_NMI);
  settle();
  at[1] = count[2];
  report(2);
  settle();
  at[2] = count[2];
  report(3);
  __asm__ volatile("cli; hlt"); /* only an NMI can end it */
  at[3] = count[2];
  at[4] = apic_bit(A_ISR, 2);
  done();
}

/* From another thread, once the vCPU is halted. */
static void *nmi_thread(void *arg) {
  guest_wait_halted(arg);
  msi(arg, 0, ICR_NMI);
  return NULL;
}

static void nmi(void) {
  struct guest *g = start(guest_nmi);
  pthread_t t;
  HANDLE(g, 2, take_nmi);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_NMI, NULL), 0);
  CHECK_EQ(guest_next(g), 2);
  CHECK_EQ(msi(g, 0, ICR_NMI), 1);
  CHECK_EQ(guest_next(g), 3);
  CHECK_EQ(at[2], 3);
  guest_watch_halts(g);
  pthread_create(&t, NULL, nmi_thread, g);
  CHECK_EQ(guest_next(g), DONE);
  pthread_join(t, NULL);
  CHECK_EQ(at[0], 1);
  CHECK_EQ(at[1], 2);
  CHECK_EQ(at[3], 4);
  CHECK_EQ(at[4], 0);
  guest_free(g);
}

GUEST_MAIN({"timer-oneshot", timer_oneshot}, {"timer-periodic", timer_periodic}, {"timer-deadline", timer_deadline},
           {"halt-wakes", halt_wakes}, {"priority-order", priority_order}, {"nesting", nesting}, {"tpr-masks", tpr_masks},
           {"spurious", spurious}, {"self-xapic", self_xapic}, {"self-x2apic", self_x2apic}, {"x2apic-faults", x2apic_faults},
           {"pit", pit}, {"line-level", line_level}, {"line-edge", line_edge}, {"signal-msi", signal_msi}, {"nmi", nmi})

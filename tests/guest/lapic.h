/* Guest side of the interrupt tests: ports, MSRs, the local APIC in both modes, time. */
#ifndef TESTS_GUEST_LAPIC_H
#define TESTS_GUEST_LAPIC_H

#include "harness.h"

#define DONE 0x7f /* last report of a guest function */

#define APIC_PAGE   0xfee00000ul
#define IOAPIC_PAGE 0xfec00000ul

/* Registers; MSR 0x800 + offset / 16 in x2APIC mode. */
#define A_ID       0x20
#define A_TPR      0x80
#define A_PPR      0xa0
#define A_EOI      0xb0
#define A_LDR      0xd0
#define A_DFR      0xe0
#define A_SVR      0xf0
#define A_ISR      0x100
#define A_TMR      0x180
#define A_IRR      0x200
#define A_ICR      0x300
#define A_ICR2     0x310
#define A_LVT_TIME 0x320
#define A_LINT1    0x360
#define A_TMICT    0x380
#define A_TMCCT    0x390
#define A_TDCR     0x3e0

#define ICR_NMI       0x400u
#define ICR_INIT      0x500u
#define ICR_SIPI      0x600u
#define ICR_LOGICAL   0x800u
#define ICR_ASSERT    0x4000u
#define ICR_TO_SELF   0x40000u
#define ICR_TO_ALL    0x80000u
#define ICR_TO_OTHERS 0xc0000u

#define MSR_APIC_BASE    0x1b
#define MSR_TSC_DEADLINE 0x6e0
#define X2(reg)          (0x800u + (reg) / 16)

struct frame {
  u64 rip, cs, rflags, rsp, ss;
};
#define HANDLER __attribute__((interrupt)) static void

static inline void outb(u16 port, u8 v) {
  __asm__ volatile("outb %0, %1" ::"a"(v), "Nd"(port) : "memory");
}
static inline u8 inb(u16 port) {
  u8 v;
  __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port) : "memory");
  return v;
}
static inline void report(u8 n) {
  outb(GUEST_PORT, n);
}
static inline _Noreturn void done(void) {
  for (;;) report(DONE);
}

static inline u64 rdmsr(u32 msr) {
  u32 lo, hi;
  __asm__ volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr) : "memory");
  return lo | (u64)hi << 32;
}
static inline void wrmsr(u32 msr, u64 v) {
  __asm__ volatile("wrmsr" ::"c"(msr), "a"((u32)v), "d"((u32)(v >> 32)) : "memory");
}
static inline u64 rdtsc(void) {
  u32 lo, hi;
  __asm__ volatile("lfence; rdtsc" : "=a"(lo), "=d"(hi)::"memory");
  return lo | (u64)hi << 32;
}
static inline void cli(void) {
  __asm__ volatile("cli" ::: "memory");
}
static inline void sti(void) {
  __asm__ volatile("sti; nop" ::: "memory");
}
static inline void halt_once(void) {
  __asm__ volatile("sti; hlt; cli" ::: "memory");
}
static inline void relax(void) {
  __asm__ volatile("pause" ::: "memory");
}
static inline u64 read_cr8(void) {
  u64 v;
  __asm__ volatile("mov %%cr8, %0" : "=r"(v)::"memory");
  return v;
}
static inline void write_cr8(u64 v) {
  __asm__ volatile("mov %0, %%cr8" ::"r"(v) : "memory");
}

static inline volatile u32 *mmio(u64 at) {
  return (volatile u32 *)(uintptr_t)at;
}
static inline u32 apic_read(unsigned reg) {
  return *mmio(APIC_PAGE + reg);
}
static inline void apic_write(unsigned reg, u32 v) {
  *mmio(APIC_PAGE + reg) = v;
}
static inline void eoi(void) {
  apic_write(A_EOI, 0);
}
static inline void apic_on(void) {
  apic_write(A_SVR, 0x1ff);
}
/* The PIC has the same lines, and a vCPU starts with LINT0 as its input. */
static inline void pic_off(void) {
  outb(0x21, 0xff);
  outb(0xa1, 0xff);
}
static inline bool apic_bit(unsigned reg, unsigned vector) {
  return apic_read(reg + vector / 32 * 16) >> vector % 32 & 1;
}
static inline void ipi(u32 dest, u32 icr) {
  apic_write(A_ICR2, dest << 24);
  apic_write(A_ICR, icr | ICR_ASSERT);
}
static inline void x2apic_on(void) {
  wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | 0x400);
  wrmsr(X2(A_SVR), 0x1ff);
}

static inline u32 ioapic_read(unsigned reg) {
  *mmio(IOAPIC_PAGE) = reg;
  return *mmio(IOAPIC_PAGE + 0x10);
}
static inline void ioapic_write(unsigned reg, u32 v) {
  *mmio(IOAPIC_PAGE) = reg;
  *mmio(IOAPIC_PAGE + 0x10) = v;
}
/* To the APIC with ID 0. */
static inline void ioapic_pin(unsigned pin, u32 low) {
  ioapic_write(0x11 + pin * 2, 0);
  ioapic_write(0x10 + pin * 2, low);
}

/* ---- time; the host fills it in ---- */
static volatile u64 ticks_per_ms;

static inline void wait_ms(unsigned ms) {
  u64 end = rdtsc() + ms * ticks_per_ms;
  while (rdtsc() < end) relax();
}
/* Until the counter has that value, at most some seconds. */
static inline void wait_count(const volatile u32 *count, u32 value) {
  u64 end = rdtsc() + 20000 * ticks_per_ms;
  while (*count < value && rdtsc() < end) relax();
}

/* An interrupt by an access to the APIC comes soon after it, not always before the next instruction. */
static inline void settle(void) {
  for (volatile unsigned n = 0; n < 100; n++) relax();
}

/* ---- host side ---- */

/* A 64-bit guest that runs a C function of the test, with the APICs' pages mapped. */
static inline struct guest *start_function(void (*f)(void)) {
  struct guest *g = guest_new_chips();
  guest_long(g, (u64)(uintptr_t)f);
  guest_map_image(g);
  guest_map(g, APIC_PAGE, APIC_PAGE, 0x1000, P_W);
  guest_map(g, IOAPIC_PAGE, IOAPIC_PAGE, 0x1000, P_W);
  ticks_per_ms = (u64)guest_ioctl(g->vcpu, KVM_GET_TSC_KHZ, NULL);
  return g;
}
#define HANDLE(g, vector, f) guest_idt64(g, vector, 0xe, 0, SEL_CODE64, (u64)(uintptr_t)(f), 0)

#endif

/* Whole states: a vCPU is copied by the ioctls into a new VM (copy.c) in the middle of something, and goes on as if nothing had
 * been. Every test runs with both orders in which clients restore. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include "copy.h"
#include "inside.h"

static enum copy_order order;

static void copy(struct guest *g) {
  copy_guest(&g, 1, order);
}

static struct kvm_vcpu_events events_of(struct guest *g) {
  struct kvm_vcpu_events e = {0};
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_VCPU_EVENTS, &e), 0);
  return e;
}
static void set_events(struct guest *g, struct kvm_vcpu_events e) {
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_VCPU_EVENTS, &e), 0);
}

static u32 mp_state(struct guest *g) {
  struct kvm_mp_state s = {0};
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_MP_STATE, &s), 0);
  return s.mp_state;
}

static void set_msr(struct guest *g, u32 index, u64 value) {
  struct {
    struct kvm_msrs head;
    struct kvm_msr_entry entry;
  } m = {.head.nmsrs = 1, .entry = {.index = index, .data = value}};
  if (guest_ioctl(g->vcpu, KVM_SET_MSRS, &m) != 1) check_failed(__FILE__, __LINE__, "MSR", 0, index);
}

static void set_flags(struct guest *g, u64 flags) {
  struct kvm_regs r = guest_regs(g);
  r.rflags = flags;
  guest_set_regs(g, &r);
}

/* KVM_RUN for some milliseconds: the guest computes, or has halted. */
static void nothing(int signal) {}
static void run_for(struct guest *g, unsigned ms) {
  struct sigaction action = {.sa_handler = nothing};
  struct itimerval once = {.it_value.tv_usec = ms * 1000, .it_interval.tv_usec = 5000}, off = {0};
  sigaction(SIGALRM, &action, NULL);
  setitimer(ITIMER_REAL, &once, NULL);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_RUN, NULL), -1);
  CHECK_EQ(errno, EINTR);
  setitimer(ITIMER_REAL, &off, NULL);
}

static struct guest *nops(bool chips) {
  struct guest *g = chips ? guest_new_chips() : guest_new();
  guest_long(g, GUEST_CODE);
  memset(g->mem + GUEST_CODE, 0x90, 64);
  guest_write(g, GUEST_CODE + 64, 4, GUEST_PORT << 24 | 0xe60000 | 0x09b0);
  return g;
}
#define END 9

/* ---- registers ---- */

static void fill(void *at, size_t size) {
  for (size_t n = 0; n < size; n++) ((u8 *)at)[n] = (u8)rand();
}

/* Everything the registers of an XSAVE image can hold. */
static void random_xsave(struct guest *g) {
  static u32 area[2048];
  u64 bv = guest_sregs(g).cr4 & 0 ? 0 : 0xe7;
  struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs[0].value = 0xe7};
  if (guest_ioctl(g->vcpu, KVM_SET_XCRS, &xcrs)) {
    bv = xcrs.xcrs[0].value = 7;
    if (guest_ioctl(g->vcpu, KVM_SET_XCRS, &xcrs)) bv = 3;
  }
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_XSAVE2, area), 0);
  u8 *b = (u8 *)area;
  fill(b + 576, 2688 - 576);
  fill(b + 160, 256);
  for (unsigned n = 0; n < 8; n++) fill(b + 32 + n * 16, 10);
  memcpy(b, (u16[]){0x027f, 0x2800, 0x5a, 0x123}, 8);
  memcpy(b + 8, (u64[]){0x0000123456789abc, 0xfedcba9876543210}, 16);
  memcpy(b + 24, (u32[]){0x1f80 | 0x6000}, 4);
  memcpy(b + 512, &bv, 8);
  memset(b + 520, 0, 56);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_XSAVE, area), 0);
}

static void registers(void) {
  static const struct {
    u32 index;
    u64 value;
  } msrs[] = {
      {0x277, 0x0106040700050401},
      {0x2ff, 0xc06},
      {0x200, 0x40000006},
      {0x201, 0xffffc0000800},
      {0x250, 0x0606060606060606},
      {0x26f, 0x0505050505050505},
      {0x174, 8},
      {0x175, 0xffff800012345678},
      {0x176, 0xffff800087654321},
      {0xc0000081, 0x0023001000000000},
      {0xc0000082, 0xffff800000000abc},
      {0xc0000083, 0x1234},
      {0xc0000084, 0x47700},
      {0xc0000102, 0xffff888811112222},
      {0xc0000103, 77},
      {0x10a, 0},
      {0x48, 1},
      {0x17a, 5},
      {0x400, ~0ull},
      {0x401, 0xb200000000000123},
      {0x3b, 0x123456},
      {0x4b564d05, 0},
      {0x9e, 7},
  };
  struct guest *g = nops(true);
  struct kvm_regs r = {.rip = GUEST_CODE, .rflags = 0x00240ed7};
  struct kvm_debugregs d = {.db = {0x1000, 0xffff800000001234, 3, 4}, .dr6 = 0xffff4ff1, .dr7 = 0x400};
  fill(&r, offsetof(struct kvm_regs, rip));
  guest_set_regs(g, &r);
  for (unsigned n = 0; n < sizeof(msrs) / sizeof(msrs[0]); n++) set_msr(g, msrs[n].index, msrs[n].value);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_DEBUGREGS, &d), 0);
  struct kvm_sregs s = guest_sregs(g);
  s.cr2 = 0xffff812345678901;
  s.cr8 = 5;
  s.fs.base = 0x7fff12345678;
  s.gs.base = 0xffff888812340000;
  s.es = s.ds =
      (struct kvm_segment){.selector = SEL_DATA3, .limit = ~0u, .type = 3, .s = 1, .present = 1, .g = 1, .db = 1, .dpl = 3};
  s.ldt = (struct kvm_segment){.selector = SEL_LDT, .base = 0xffff80001234, .limit = 0xff, .type = 2, .present = 1};
  s.gdt.limit = 0x7f;
  s.idt.limit = 0xffe;
  guest_set_sregs(g, &s);
  random_xsave(g);
  for (unsigned n = 0; n < 3; n++) copy(g);
  set_flags(g, 2);
  CHECK_EQ(guest_next(g), END);
  guest_free(g);
}

/* PDPTE registers that are not what memory says. */
static void pdptrs(void) {
  struct guest *g = guest_new();
  guest_protected(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, (u8[]){0x8b, 0x1d, 0, 0, 0x06, 0x40, 0xb0, END, 0xe6, GUEST_PORT}, 10); /* mov 0x40060000, %ebx */
  guest_write(g, 0x201000, 8, 0x83);
  guest_write(g, 0x200000, 8, 0x201001);
  guest_write(g, 0x200008, 8, 0x201001);
  guest_write(g, GUEST_DATA, 4, 0x1234);
  struct kvm_sregs s = guest_sregs(g);
  s.cr0 |= 0x80000000;
  s.cr3 = 0x200000;
  s.cr4 |= 0x20;
  guest_set_sregs(g, &s);
  guest_write(g, 0x200008, 8, 0);
  copy(g);
  CHECK_EQ(guest_next(g), END);
  CHECK_EQ(guest_regs(g).rbx, 0x1234);
  guest_free(g);
}

/* ---- events ---- */

static void interrupt(void) {
  struct guest *g = nops(false);
  struct kvm_interrupt irq = {.irq = 0x40};
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_INTERRUPT, &irq), 0);
  copy(g); /* waits for IF */
  set_flags(g, 0x202);
  copy(g);
  CHECK_EQ(guest_next(g), TRAP(0x40));
  CHECK_EQ(guest_stack(g, 0, 8), GUEST_CODE);
  copy(g);
  CHECK_EQ(guest_next(g), END);
  guest_free(g);
}

static void exception(void) {
  struct guest *g = nops(false);
  struct kvm_vcpu_events e = events_of(g);
  struct kvm_sregs s = guest_sregs(g);
  s.cr2 = 0x12345;
  guest_set_sregs(g, &s);
  e.exception.injected = 1;
  e.exception.nr = 14;
  e.exception.has_error_code = 1;
  e.exception.error_code = 7;
  set_events(g, e);
  copy(g);
  CHECK_EQ(guest_next(g), TRAP(14));
  CHECK_EQ(guest_stack(g, 0, 8), 7);
  CHECK_EQ(guest_stack(g, 1, 8), GUEST_CODE);
  CHECK_EQ(guest_sregs(g).cr2, 0x12345);
  guest_free(g);
}

static void with_payload(struct guest *g) {
  CHECK_EQ(guest_enable(g, KVM_CAP_EXCEPTION_PAYLOAD, 1), 0);
}

static void pending_exceptions(void) {
  static const struct {
    u8 vector;
    bool error;
    u64 payload;
  } cases[] = {{1, false, 0x4001}, {14, true, 0xffff800000001000}};
  for (unsigned n = 0; n < 2; n++) {
    struct guest *g = nops(false);
    with_payload(g);
    copy_prepare = with_payload;
    struct kvm_vcpu_events e = events_of(g);
    e.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
    e.exception.pending = 1;
    e.exception.nr = cases[n].vector;
    e.exception.has_error_code = cases[n].error;
    e.exception.error_code = 4 * cases[n].error;
    e.exception_has_payload = 1;
    e.exception_payload = cases[n].payload;
    set_events(g, e);
    copy(g);
    CHECK_EQ(events_of(g).exception_payload, cases[n].payload);
    CHECK_EQ(guest_next(g), TRAP(cases[n].vector));
    struct kvm_debugregs d;
    CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_DEBUGREGS, &d), 0);
    if (cases[n].vector == 1) CHECK_EQ(d.dr6 & 0x400f, 0x4001);
    if (cases[n].vector == 14) CHECK_EQ(guest_sregs(g).cr2, cases[n].payload);
    guest_free(g);
  }
  copy_prepare = NULL;
}

/* A shadow holds the interrupt off for one instruction, here or there. */
static void shadow(void) {
  static const u8 shadows[] = {0, KVM_X86_SHADOW_INT_STI, KVM_X86_SHADOW_INT_MOV_SS};
  for (unsigned n = 0; n < 3; n++) {
    struct guest *g = nops(false);
    struct kvm_vcpu_events e = events_of(g);
    set_flags(g, 0x202);
    e.interrupt.injected = 1;
    e.interrupt.nr = 0x41;
    e.interrupt.shadow = shadows[n];
    set_events(g, e);
    copy(g);
    CHECK_EQ(events_of(g).interrupt.shadow, shadows[n]);
    CHECK_EQ(guest_next(g), TRAP(0x41));
    CHECK_EQ(guest_stack(g, 0, 8), GUEST_CODE + (n > 0));
    guest_free(g);
  }
}

/* In an NMI's handler with the next one waiting. */
static void nmi(void) {
  struct guest *g = nops(false);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_NMI, NULL), 0);
  copy(g);
  CHECK_EQ(guest_next(g), TRAP(2));
  u64 sp = guest_regs(g).rsp;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_NMI, NULL), 0);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_NMI, NULL), 0); /* one is kept */
  CHECK_EQ(events_of(g).nmi.masked, 1);
  copy(g);
  CHECK_EQ(events_of(g).nmi.pending, 1);
  CHECK_EQ(guest_next(g), TRAP(2));
  CHECK_EQ(guest_regs(g).rsp, sp); /* not nested */
  copy(g);
  CHECK_EQ(guest_next(g), END);
  CHECK_EQ(events_of(g).nmi.masked, 0);
  guest_free(g);
}

#define SMBASE 0x40000

/* In an SMI's handler, inside an NMI's, with the next SMI and the next NMI waiting. */
static void smm(void) {
  static const u8 handler[] = {0xb0, 3, 0xe6, GUEST_PORT, 0x0f, 0xaa};
  struct guest *g = nops(false);
  guest_add_slot(g, 1, 0, g->mem, GUEST_MEM);
  guest_load(g, SMBASE + 0x8000, handler, sizeof(handler));
  set_msr(g, 0x9e, SMBASE);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_NMI, NULL), 0);
  CHECK_EQ(guest_next(g), TRAP(2));
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SMI, NULL), 0);
  copy(g);
  CHECK_EQ(events_of(g).smi.pending, 1);
  CHECK_EQ(guest_next(g), 3);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SMI, NULL), 0);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_NMI, NULL), 0);
  copy(g);
  CHECK_EQ(events_of(g).smi.smm, 1);
  CHECK_EQ(events_of(g).smi.smm_inside_nmi, 1);
  CHECK_EQ(guest_next(g), 3); /* the next SMI */
  copy(g);
  CHECK_EQ(guest_next(g), TRAP(2)); /* behind the first NMI's IRET */
  CHECK_EQ(events_of(g).smi.smm, 0);
  copy(g);
  CHECK_EQ(guest_next(g), END);
  guest_free(g);
}

/* ---- run states ---- */

GUEST_BLOB(application, ".code16\n mov %cs, %bx\n" REPORT(4) "1: jmp 1b\n");

static void guest_init(void) {
  apic_on();
  ipi(1, ICR_INIT);
  report(1);
  ipi(1, ICR_SIPI | 0xa);
  done();
}

/* An application processor between INIT and SIPI, and with both received and not looked at. */
static void start_up(void) {
  struct guest *g = start_function(guest_init), *ap = guest_add_cpu(g, 1);
  struct guest *both[2] = {g, ap};
  guest_load(g, 0xa000, application_start, (size_t)(application_end - application_start));
  copy_guest(both, 2, order);
  CHECK_EQ(mp_state(ap), KVM_MP_STATE_UNINITIALIZED);
  CHECK_EQ(guest_next(g), 1);
  copy_guest(both, 2, order);
  CHECK_EQ(mp_state(ap), KVM_MP_STATE_INIT_RECEIVED);
  CHECK_EQ(guest_next(g), DONE);
  copy_guest(both, 2, order);
  CHECK_EQ(mp_state(ap), KVM_MP_STATE_RUNNABLE);
  CHECK_EQ(guest_next(ap), 4);
  CHECK_EQ(guest_regs(ap).rbx & 0xffff, 0xa00);
  guest_free_cpu(ap);
  guest_free(g);
}

static volatile u32 count;
HANDLER take_timer(struct frame *f) {
  count = count + 1;
  eoi();
}

/* ---- timers ---- */

static volatile u32 lvt;
static volatile u64 waited;

/* Halted until the timer comes, 400 ms. */
static void guest_one_shot(void) {
  apic_on();
  count = 0;
  apic_write(A_TDCR, 0xb);
  apic_write(A_LVT_TIME, lvt);
  u64 start = rdtsc();
  if (lvt & 0x40000)
    wrmsr(MSR_TSC_DEADLINE, start + 400 * ticks_per_ms);
  else
    apic_write(A_TMICT, 400000000);
  while (!count) halt_once();
  waited = rdtsc() - start;
  report(1);
  while (lvt & 0x20000 && count < 3) halt_once();
  done();
}

static void one_shot(u32 mode) {
  struct guest *g = start_function(guest_one_shot);
  HANDLE(g, 0x60, take_timer);
  lvt = 0x60 | mode;
  for (unsigned n = 0; n < 20 && mp_state(g) != KVM_MP_STATE_HALTED; n++) run_for(g, 5);
  CHECK_EQ(mp_state(g), KVM_MP_STATE_HALTED);
  copy(g);
  CHECK_EQ(mp_state(g), KVM_MP_STATE_HALTED);
  run_for(g, 10);
  copy(g);
  CHECK_EQ(guest_next(g), 1);
  CHECK(count == 1 || (mode == 0x20000 && count > 1));
  CHECK(waited >= 399 * ticks_per_ms);
  copy(g);
  CHECK_EQ(guest_next(g), DONE);
  guest_free(g);
}

static void apic_timers(void) {
  one_shot(0);
  one_shot(0x20000);
  one_shot(0x40000);
}

/* Ticks of the PIT through both chips, with a count in flight at each copy. */
static void guest_pit(void) {
  count = 0;
  apic_on();
  pic_off();
  ioapic_pin(0, 0x61);
  outb(0x43, 0x34);
  outb(0x40, 0x9c); /* 1193182 / 11932: 100 Hz */
  outb(0x40, 0x2e);
  while (count < 30) halt_once();
  done();
}

static void pit(void) {
  struct guest *g = start_function(guest_pit);
  HANDLE(g, 0x61, take_timer);
  copy_pause_ms = 15;
  for (unsigned n = 0; n < 4; n++) {
    run_for(g, 5);
    copy(g);
  }
  copy_pause_ms = 0;
  CHECK_EQ(guest_next(g), DONE);
  CHECK(count >= 30);
  guest_free(g);
}

/* ---- chips ---- */

HANDLER take_level(struct frame *f) {
  count = count + 1;
  report(5);
  eoi();
}

/* A PIC in the middle of its initialization; a level interrupt in service with its line still high. */
static void guest_chips(void) {
  outb(0x20, 0x11);
  outb(0x21, 0x50);
  report(1);
  outb(0x21, 4);
  outb(0x21, 1);
  outb(0x21, 0xf7);
  report(2);
  sti();
  cli();
  outb(0x21, 0xff);
  apic_on();
  ioapic_pin(10, 0x8062);
  report(3);
  while (count < 3) halt_once();
  done();
}

static void line(struct guest *g, unsigned gsi, unsigned level) {
  struct kvm_irq_level l = {.irq = gsi, .level = level};
  CHECK_EQ(guest_ioctl(g->vm, KVM_IRQ_LINE, &l), 0);
}

HANDLER take_pic(struct frame *f) {
  report(4);
  outb(0x20, 0x20);
}

static void chips(void) {
  struct guest *g = start_function(guest_chips);
  HANDLE(g, 0x53, take_pic);
  HANDLE(g, 0x62, take_level);
  count = 0;
  CHECK_EQ(guest_next(g), 1);
  copy(g);
  CHECK_EQ(guest_next(g), 2);
  line(g, 3, 1);
  copy(g);
  CHECK_EQ(guest_next(g), 4);
  copy(g); /* in service */
  line(g, 3, 1);
  line(g, 3, 0);
  CHECK_EQ(guest_next(g), 3);
  line(g, 10, 1);
  copy(g);
  CHECK_EQ(guest_next(g), 5);
  copy(g);
  CHECK_EQ(guest_next(g), 5); /* the line is still high */
  copy(g);
  line(g, 10, 1);
  line(g, 10, 0);
  line(g, 10, 1);
  CHECK_EQ(guest_next(g), 5);
  line(g, 10, 0);
  copy(g);
  CHECK_EQ(guest_next(g), DONE);
  CHECK_EQ(count, 3);
  guest_free(g);
}

/* ---- paravirtual ---- */

#define MSR_WALL   0x4b564d00
#define MSR_TIME   0x4b564d01
#define MSR_PV_EOI 0x4b564d04

struct time_info {
  u32 version, pad0;
  u64 tsc_timestamp, system_time;
  u32 mul;
  signed char shift;
  u8 flags, pad[2];
};
static volatile struct time_info info __attribute__((aligned(64)));
static volatile u32 pv_flag __attribute__((aligned(64)));
static volatile u64 readings[4];

static u64 pv_clock(void) {
  u64 delta, t;
  u32 version;
  do {
    version = info.version & ~1u;
    delta = rdtsc() - info.tsc_timestamp;
    delta = info.shift < 0 ? delta >> -info.shift : delta << info.shift;
    t = info.system_time + (u64)((unsigned __int128)delta * info.mul >> 32);
  } while (version != info.version);
  return t;
}

static volatile u64 info_gpa, flag_gpa;

static void guest_clock(void) {
  wrmsr(MSR_TIME, info_gpa | 1);
  for (unsigned n = 0; n < 4; n++) {
    readings[n] = pv_clock();
    report(1);
  }
  done();
}

/* The clock does not run while nobody does, and neither goes back nor jumps. */
static void clock_page(void) {
  struct guest *g = start_function(guest_clock);
  info_gpa = guest_image_gpa(&info);
  for (unsigned n = 0; n < 4; n++) {
    CHECK_EQ(guest_next(g), 1);
    copy(g);
  }
  CHECK_EQ(guest_next(g), DONE);
  for (unsigned n = 1; n < 4; n++) {
    CHECK(readings[n] > readings[n - 1]);
    CHECK(readings[n] - readings[n - 1] < 5000000000ull);
  }
  guest_free(g);
}

/* The handler ends its interrupt the new way if it may, and is copied before it does. */
HANDLER take_self(struct frame *f) {
  bool clear;
  count = count + 1;
  report(5);
  __asm__ volatile("btrl $0, %1; setc %0" : "=r"(clear), "+m"(pv_flag)::"memory");
  if (!clear) eoi();
}

static void guest_pv_eoi(void) {
  apic_on();
  wrmsr(MSR_PV_EOI, flag_gpa | 1);
  sti();
  for (unsigned n = 1; n <= 3; n++) {
    ipi(0, 0x63 | ICR_TO_SELF);
    wait_count(&count, n);
  }
  done();
}

static void pv_eoi(void) {
  struct guest *g = start_function(guest_pv_eoi);
  HANDLE(g, 0x63, take_self);
  flag_gpa = guest_image_gpa(&pv_flag);
  count = 0;
  for (unsigned n = 1; n <= 3; n++) {
    CHECK_EQ(guest_next(g), 5);
    CHECK_EQ(count, n);
    copy(g);
  }
  CHECK_EQ(guest_next(g), DONE);
  guest_free(g);
}

/* ---- the counter ---- */

static void guest_tsc(void) {
  for (unsigned n = 0; n < 4; n++) {
    readings[n] = rdtsc();
    report(1);
  }
  done();
}

static void tsc(void) {
  static const unsigned khz[] = {0, 1000000, 4000000};
  for (unsigned k = 0; k < 3; k++) {
    struct guest *g = start_function(guest_tsc);
    if (khz[k] && guest_ioctl(g->vcpu, KVM_SET_TSC_KHZ, (void *)(uintptr_t)khz[k])) continue;
    u64 rate = (u64)guest_ioctl(g->vcpu, KVM_GET_TSC_KHZ, NULL);
    set_msr(g, 0x10, 1ull << 50);
    for (unsigned n = 0; n < 4; n++) {
      CHECK_EQ(guest_next(g), 1);
      copy(g);
    }
    CHECK(readings[0] >= 1ull << 50);
    for (unsigned n = 1; n < 4; n++) {
      CHECK(readings[n] > readings[n - 1]);
      CHECK(readings[n] - readings[n - 1] < 5000 * rate);
    }
    CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_TSC_KHZ, NULL), rate);
    guest_free(g);
  }
}

/* ---- anything, anywhere ---- */

static volatile u32 ticks;
HANDLER take_tick(struct frame *f) {
  ticks = ticks + 1;
  eoi();
}

static u8 buffer[2][8192];

/* Work whose result is known, interrupted by a timer of 1 ms and by exits. */
static u64 work(void) {
  u64 h = 88172645463325252ull, sum = 0;
  for (u32 n = 0; n < 400; n++) {
    for (u32 k = 0; k < 500; k++) {
      h ^= h << 13, h ^= h >> 7, h ^= h << 17;
      sum += h;
    }
    void *to = buffer[1], *from = buffer[0];
    u64 size = sizeof(buffer[0]);
    buffer[0][n % sizeof(buffer[0])] = (u8)sum;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size)::"memory");
    sum += buffer[1][h % sizeof(buffer[1])] + buffer[1][n];
  }
  return sum;
}

static volatile u64 answer;
static void guest_work(void) {
  apic_on();
  apic_write(A_TDCR, 0xb);
  apic_write(A_LVT_TIME, 0x20064);
  apic_write(A_TMICT, 1000000);
  sti();
  for (unsigned n = 0; n < 4; n++) {
    answer = work();
    report(1);
  }
  cli();
  done();
}

static void anywhere(void) {
  memset(buffer, 0, sizeof(buffer));
  u64 want = work();
  struct guest *g = start_function(guest_work);
  struct sigaction action = {.sa_handler = nothing};
  struct itimerval often = {.it_value.tv_usec = 1500, .it_interval.tv_usec = 1500}, off = {0};
  HANDLE(g, 0x64, take_tick);
  memset(buffer, 0, sizeof(buffer));
  ticks = 0;
  sigaction(SIGALRM, &action, NULL);
  setitimer(ITIMER_REAL, &often, NULL);
  unsigned reports = 0, copies = 0;
  for (bool ended = false; !ended && reports < 9;) {
    if (!guest_ioctl(g->vcpu, KVM_RUN, NULL)) {
      u8 value = ((u8 *)g->run)[g->run->io.data_offset];
      g->run->immediate_exit = 1;
      CHECK_EQ(guest_ioctl(g->vcpu, KVM_RUN, NULL), -1);
      g->run->immediate_exit = 0;
      ended = value == DONE;
      if (value == 1 && !reports++) CHECK_EQ(answer, want);
      memset(buffer, 0, sizeof(buffer));
    }
    if (!ended && copies < 100) copy(g), copies++;
  }
  setitimer(ITIMER_REAL, &off, NULL);
  CHECK_EQ(reports, 4);
  CHECK_EQ(answer, want);
  CHECK(ticks > 0);
  guest_free(g);
}

#define BOTH(name)                                                                                                               \
  static void all_##name(void) {                                                                                                 \
    for (order = 0; order < COPY_ORDERS; order++) name();                                                                        \
  }
BOTH(registers)
BOTH(pdptrs)
BOTH(interrupt)
BOTH(exception)
BOTH(pending_exceptions)
BOTH(shadow)
BOTH(nmi)
BOTH(smm)
BOTH(start_up)
BOTH(apic_timers)
BOTH(pit)
BOTH(chips)
BOTH(clock_page)
BOTH(pv_eoi)
BOTH(tsc)
BOTH(anywhere)

GUEST_MAIN({"registers", all_registers}, {"pdptrs", all_pdptrs}, {"interrupt", all_interrupt}, {"exception", all_exception},
           {"pending_exceptions", all_pending_exceptions}, {"shadow", all_shadow}, {"nmi", all_nmi}, {"smm", all_smm},
           {"start_up", all_start_up}, {"apic_timers", all_apic_timers}, {"pit", all_pit}, {"chips", all_chips},
           {"clock_page", all_clock_page}, {"pv_eoi", all_pv_eoi}, {"tsc", all_tsc}, {"anywhere", all_anywhere})

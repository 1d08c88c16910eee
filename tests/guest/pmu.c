/* Performance counters (SDM Vol. 3B 20.2): what is counted, exactly where that is defined; rings, overflow and its interrupt,
 * RDPMC, reserved bits, save and restore by user space, and the event filter (api.rst 4.120, 8.36). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "inside.h"

#define PERFCTR0    0xc1
#define EVNTSEL0    0x186
#define FIXED_CTR0  0x309
#define PERF_CAPS   0x345
#define FIXED_CTRL  0x38d
#define STATUS      0x38e
#define GLOBAL_CTRL 0x38f
#define OVF_CTRL    0x390
#define PMC0        0x4c1

#define USR        (1u << 16)
#define OS         (1u << 17)
#define INT        (1u << 20)
#define EN         (1u << 22)
#define CYCLES     0x3cu
#define REF_CYCLES 0x13cu
#define INSNS      0xc0u
#define BRANCHES   0xc4u

#define A_LVT_PMC 0x340
#define MASKED    0x10000u
#define WIDTH     48
#define WRAP      (1ull << WIDTH)

#define RDPMC_FIXED (1u << 30)
static inline u64 rdpmc(u32 n) {
  u32 lo, hi;
  __asm__ volatile("rdpmc" : "=a"(lo), "=d"(hi) : "c"(n));
  return lo | (u64)hi << 32;
}
static inline u32 try_wrmsr(u32 msr, u64 v) {
  return TRY("mov %0, %%ecx\n mov %1, %%rax\n mov %1, %%rdx\n shr $32, %%rdx\n wrmsr", "b"(msr), "r"(v));
}
static inline u32 try_rdmsr(u32 msr) {
  return TRY("mov %0, %%ecx\n rdmsr", "b"(msr));
}

/* Counter 0 counts `event` while `text` runs in ring 0; what it counted.  The WRMSR that starts it is not counted, nor the one
 * that stops. */
#define STOP       "mov $0x38f, %%ecx\n xor %%eax, %%eax\n xor %%edx, %%edx\n wrmsr\n"
#define STOP_INSNS 3
#define COUNT(event, text)                                                                                                       \
  ({                                                                                                                             \
    wrmsr(GLOBAL_CTRL, 0);                                                                                                       \
    wrmsr(EVNTSEL0, (event) | OS | EN);                                                                                          \
    wrmsr(PERFCTR0, 0);                                                                                                          \
    __asm__ volatile("wrmsr\n" text STOP ::"c"(GLOBAL_CTRL), "a"(1), "d"(0) : "rbx", "rsi", "rdi", "memory", "cc");              \
    rdmsr(PERFCTR0);                                                                                                             \
  })
#define COUNT_INSNS(text) (COUNT(INSNS, text) - STOP_INSNS)

/* ---- what counts ---- */

static u8 buffer[4096] __attribute__((used)), copy[4096] __attribute__((used));

static void guest_exact(void) {
  EXPECT_EQ(COUNT_INSNS(""), 0);
  EXPECT_EQ(COUNT_INSNS("nop\n"), 1);
  EXPECT_EQ(COUNT_INSNS(".rept 100\n nop\n .endr\n"), 100);
  EXPECT_EQ(COUNT_INSNS("mov $1000, %%ebx\n 1: dec %%ebx\n jnz 1b\n"), 1 + 2 * 1000);
  EXPECT_EQ(COUNT_INSNS("mov $1000, %%ecx\n 1: loop 1b\n"), 1 + 1000);
  EXPECT_EQ(COUNT_INSNS("lea buffer(%%rip), %%rsi\n lea copy(%%rip), %%rdi\n mov $4096, %%ecx\n rep movsb\n"), 4);
  EXPECT_EQ(COUNT_INSNS("call 1f\n jmp 2f\n 1: ret\n 2:\n"), 3);
  EXPECT_EQ(COUNT_INSNS("mov %%cr3, %%rax\n mov %%rax, %%cr3\n cpuid\n nop\n"), 4);
  EXPECT_EQ(COUNT_INSNS("sti\n nop\n cli\n"), 3);
  EXPECT_EQ(COUNT_INSNS("mov %%ss, %%eax\n mov %%eax, %%ss\n nop\n"), 3);
  /* with exits: a port written, one read, a device read and written, an MSR that user space knows */
  EXPECT_EQ(COUNT_INSNS("out %%al, $0x55\n nop\n"), 2);
  EXPECT_EQ(COUNT_INSNS("in $0x55, %%al\n nop\n"), 2);
  EXPECT_EQ(COUNT_INSNS("mov $0x20000000, %%ebx\n mov (%%rbx), %%rax\n mov %%rax, (%%rbx)\n incl (%%rbx)\n"), 4);
  EXPECT_EQ(COUNT_INSNS("mov $0x12345678, %%ecx\n rdmsr\n nop\n wrmsr\n nop\n"), 5);
  /* another counter is programmed meanwhile: the running one misses nothing */
  EXPECT_EQ(COUNT_INSNS("mov $0x187, %%ecx\n xor %%eax, %%eax\n xor %%edx, %%edx\n wrmsr\n nop\n"), 5);
  done();
}

static void guest_branches(void) {
#define COUNT_BRANCHES(text) COUNT(BRANCHES, text)
  EXPECT_EQ(COUNT_BRANCHES(""), 0);
  EXPECT_EQ(COUNT_BRANCHES("mov $1000, %%ebx\n 1: dec %%ebx\n jnz 1b\n"), 1000); /* the last is not taken */
  EXPECT_EQ(COUNT_BRANCHES("mov $10, %%ecx\n 1: loop 1b\n jrcxz 2f\n ud2\n 2:\n"), 11);
  EXPECT_EQ(COUNT_BRANCHES("call 1f\n jmp 2f\n 1: ret\n 2:\n"), 3);
  EXPECT_EQ(COUNT_BRANCHES("lea 1f(%%rip), %%rbx\n jmp *%%rbx\n 1: lea 2f(%%rip), %%rbx\n push %%rbx\n ret\n 2:\n"), 2);
  EXPECT_EQ(COUNT_BRANCHES("cpuid\n mov %%cr3, %%rax\n mov %%rax, %%cr3\n"), 0);
  done();
}

/* Answers every exit until the guest's report. */
static unsigned exits_until_report(struct guest *g) {
  unsigned exits = 0;
  for (;;) {
    CHECK_EQ(guest_run(g), 0);
    struct kvm_run *run = g->run;
    if (run->exit_reason == KVM_EXIT_IO && run->io.port == GUEST_PORT) return exits;
    CHECK(run->exit_reason == KVM_EXIT_IO || run->exit_reason == KVM_EXIT_MMIO || run->exit_reason == KVM_EXIT_X86_RDMSR ||
          run->exit_reason == KVM_EXIT_X86_WRMSR);
    exits++;
  }
}

static struct guest *start(void (*f)(void)) {
  struct guest *g = start_function(f);
  inside_catch(g);
  alarm(300);
  return g;
}

static void exact(void) {
  struct guest *g = start(guest_exact);
  CHECK_EQ(guest_enable(g, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_UNKNOWN), 0);
  guest_map(g, 0x20000000, 0x20000000, 0x1000, P_W);
  CHECK_EQ(exits_until_report(g), 8);
  inside_check();
  guest_free(g);
}

static void branches(void) {
  struct guest *g = start(guest_branches);
  inside_run(g);
}

/* ---- rings ---- */

extern const u8 user_code[], user_code_end[];
__asm__(".pushsection .guest_code, \"ax\"\nuser_code:\n.rept 10\n nop\n.endr\n mov $5, %ecx\n1: loop 1b\n "
        "ud2\nuser_code_end:\n.popsection");
#define USER_INSNS    (10 + 1 + 5)
#define USER_BRANCHES 5
extern const u8 user_rdpmc[], user_rdpmc_end[];
__asm__(".pushsection .guest_code, \"ax\"\nuser_rdpmc:\n mov %ebx, %ecx\n rdpmc\n int $0x81\nuser_rdpmc_end:\n.popsection");

static void guest_rings(void) {
  wrmsr(GLOBAL_CTRL, 0);
  wrmsr(EVNTSEL0, INSNS | USR | EN);
  wrmsr(EVNTSEL0 + 1, INSNS | OS | EN);
  wrmsr(EVNTSEL0 + 2, INSNS | USR | OS | EN);
  wrmsr(EVNTSEL0 + 3, BRANCHES | USR | EN);
  wrmsr(FIXED_CTRL, 0x2 | 0x20); /* instructions and cycles of ring 3 */
  wrmsr(GLOBAL_CTRL, 0xf | 0x3ull << 32);
  EXPECT_EQ(user_run(GUEST_USER, 0), FAULT(6, 0)); /* UD2: a fault does not retire */
  wrmsr(GLOBAL_CTRL, 0);
  EXPECT_EQ(rdmsr(PERFCTR0), USER_INSNS);
  EXPECT_EQ(rdmsr(PERFCTR0) + rdmsr(PERFCTR0 + 1), rdmsr(PERFCTR0 + 2));
  EXPECT(rdmsr(PERFCTR0 + 1) > 10 && rdmsr(PERFCTR0 + 1) < 200);
  EXPECT_EQ(rdmsr(PERFCTR0 + 3), USER_BRANCHES);
  EXPECT_EQ(rdmsr(FIXED_CTR0), USER_INSNS);
  EXPECT(rdmsr(FIXED_CTR0 + 1) > 0);
  /* a counter of ring 3 that ring 0 starts and writes while others run */
  wrmsr(GLOBAL_CTRL, 3);
  wrmsr(PERFCTR0, 7);
  EXPECT_EQ(rdmsr(PERFCTR0), 7);
  wrmsr(GLOBAL_CTRL, 0);
  EXPECT_EQ(rdmsr(PERFCTR0), 7);
  done();
}

static void rings(void) {
  struct guest *g = start(guest_rings);
  guest_load(g, GUEST_USER, user_code, (size_t)(user_code_end - user_code));
  inside_run(g);
}

/* ---- cycles ---- */

HANDLER take_timer(struct frame *f) {
  eoi();
}

static void guest_cycles(void) {
  wrmsr(GLOBAL_CTRL, 0);
  wrmsr(EVNTSEL0, CYCLES | OS | USR | EN);
  wrmsr(EVNTSEL0 + 1, REF_CYCLES | OS | USR | EN);
  wrmsr(FIXED_CTRL, 0x330);
  u64 t0 = rdtsc();
  wrmsr(GLOBAL_CTRL, 3 | 6ull << 32);
  u64 t1 = rdtsc();
  wait_ms(2);
  u64 t2 = rdtsc();
  wrmsr(GLOBAL_CTRL, 0);
  u64 t3 = rdtsc();
  const u32 all[] = {PERFCTR0, PERFCTR0 + 1, FIXED_CTR0 + 1, FIXED_CTR0 + 2};
  for (unsigned n = 0; n < 4; n++) EXPECT(rdmsr(all[n]) >= t2 - t1 && rdmsr(all[n]) <= t3 - t0);
  for (unsigned n = 0; n < 4; n++) EXPECT_EQ(rdmsr(all[n]), rdmsr(all[0]));
  EXPECT_EQ(rdmsr(FIXED_CTR0), 0);
  EXPECT_EQ(rdmsr(PERFCTR0), rdmsr(PERFCTR0)); /* it stands */

  /* none while halted; instructions go on from where they were */
  apic_on();
  apic_write(A_TDCR, 0xb);
  apic_write(A_LVT_TIME, 0x40);
  u64 counted, least = ~0ull;
  for (unsigned n = 0; n < 100 && least > 15 * ticks_per_ms; n++) { /* the host may keep the vCPU on either side of the HLT */
    wrmsr(PERFCTR0, 0);
    wrmsr(GLOBAL_CTRL, 1);
    t0 = rdtsc();
    apic_write(A_TMICT, 30000000); /* 30 ms */
    halt_once();
    t1 = rdtsc();
    wrmsr(GLOBAL_CTRL, 0);
    EXPECT(t1 - t0 >= 30 * ticks_per_ms - ticks_per_ms / 10);
    counted = rdmsr(PERFCTR0);
    if (counted < least) least = counted;
  }
  EXPECT(least <= 15 * ticks_per_ms);
  done();
}

static void cycles(void) {
  struct guest *g = start(guest_cycles);
  HANDLE(g, 0x40, take_timer);
  inside_run(g);
}

/* ---- overflow ---- */

static volatile u32 interrupts, nmis;
static volatile u64 status_seen;

HANDLER take_pmi(struct frame *f) {
  interrupts++;
  status_seen = rdmsr(STATUS);
  eoi();
}
HANDLER take_nmi(struct frame *f) {
  nmis++;
}
#define LOOP(n) __asm__ volatile("mov %0, %%ecx\n 1: loop 1b" ::"i"(n) : "ecx")

static void guest_overflow(void) {
  wrmsr(GLOBAL_CTRL, 0);
  pic_off();
  apic_on();
  sti();
  /* no interrupt asked for: the status alone */
  apic_write(A_LVT_PMC, 0x60);
  wrmsr(EVNTSEL0, INSNS | OS | EN);
  wrmsr(PERFCTR0, (u32)-100);
  EXPECT_EQ(rdmsr(PERFCTR0), WRAP - 100);
  wrmsr(GLOBAL_CTRL, 1);
  LOOP(1000);
  wrmsr(GLOBAL_CTRL, 0);
  EXPECT_EQ(rdmsr(STATUS), 1);
  EXPECT(rdmsr(PERFCTR0) >= 900 && rdmsr(PERFCTR0) < 920);
  EXPECT_EQ(interrupts, 0);
  wrmsr(OVF_CTRL, 1);
  EXPECT_EQ(rdmsr(STATUS), 0);

  /* exactly at the wrap, and not before it */
  EXPECT_EQ(COUNT_INSNS(".rept 10\n nop\n .endr\n"), 10);
  wrmsr(PERFCTR0, (u32) - (10 + STOP_INSNS + 1));
  __asm__ volatile("wrmsr\n .rept 10\n nop\n .endr\n" STOP ::"c"(GLOBAL_CTRL), "a"(1), "d"(0) : "memory");
  EXPECT_EQ(rdmsr(PERFCTR0), WRAP - 1);
  EXPECT_EQ(rdmsr(STATUS), 0);
  wrmsr(PERFCTR0, (u32) - (10 + STOP_INSNS));
  __asm__ volatile("wrmsr\n .rept 10\n nop\n .endr\n" STOP ::"c"(GLOBAL_CTRL), "a"(1), "d"(0) : "memory");
  EXPECT_EQ(rdmsr(PERFCTR0), 0);
  EXPECT_EQ(rdmsr(STATUS), 1);
  wrmsr(OVF_CTRL, 1);

  /* with an interrupt: once, as its entry is masked by it */
  wrmsr(EVNTSEL0, INSNS | OS | INT | EN);
  wrmsr(PERFCTR0, (u32)-100);
  wrmsr(GLOBAL_CTRL, 1);
  LOOP(1000);
  wrmsr(GLOBAL_CTRL, 0);
  EXPECT_EQ(interrupts, 1);
  EXPECT_EQ(status_seen, 1);
  EXPECT_EQ(apic_read(A_LVT_PMC), MASKED | 0x60);
  wrmsr(PERFCTR0, (u32)-100);
  wrmsr(GLOBAL_CTRL, 1);
  LOOP(1000);
  wrmsr(GLOBAL_CTRL, 0);
  EXPECT_EQ(interrupts, 1);
  wrmsr(OVF_CTRL, 1);

  /* fixed counter; as an NMI */
  cli();
  apic_write(A_LVT_PMC, 0x400);
  wrmsr(FIXED_CTRL, 0x9);
  wrmsr(FIXED_CTR0, WRAP - 50);
  wrmsr(GLOBAL_CTRL, 1ull << 32);
  LOOP(1000);
  wrmsr(GLOBAL_CTRL, 0);
  EXPECT_EQ(nmis, 1);
  EXPECT_EQ(rdmsr(STATUS), 1ull << 32);
  EXPECT_EQ(apic_read(A_LVT_PMC), MASKED | 0x400);
  wrmsr(OVF_CTRL, 1ull << 32);

  /* cycles: no block is looked at */
  sti();
  apic_write(A_LVT_PMC, 0x60);
  wrmsr(FIXED_CTRL, 0xb0);
  wrmsr(FIXED_CTR0 + 1, WRAP - 2 * ticks_per_ms);
  u64 t = rdtsc();
  wrmsr(GLOBAL_CTRL, 2ull << 32);
  wait_count(&interrupts, 2);
  t = rdtsc() - t;
  wrmsr(GLOBAL_CTRL, 0);
  EXPECT_EQ(interrupts, 2);
  EXPECT_EQ(status_seen, 2ull << 32);
  EXPECT(t >= 2 * ticks_per_ms);
  done();
}

static void overflow(void) {
  interrupts = nmis = 0;
  struct guest *g = start(guest_overflow);
  HANDLE(g, 0x60, take_pmi);
  HANDLE(g, 2, take_nmi);
  inside_run(g);
}

/* ---- RDPMC, registers ---- */

static void guest_registers(void) {
  u32 eax, ebx, ecx, edx;
  __asm__("cpuid" : "=a"(eax), "=b"(ebx), "=c"(ecx), "=d"(edx) : "a"(0xa), "c"(0));
  EXPECT_EQ(eax, 2 | 4 << 8 | WIDTH << 16 | 7 << 24);
  EXPECT_EQ(edx & 0x1fff, 3 | WIDTH << 5);
  EXPECT_EQ(rdmsr(GLOBAL_CTRL), 0xf); /* table 10-1 */

  wrmsr(PERFCTR0 + 3, 0x80000000); /* 32 bits, sign-extended */
  EXPECT_EQ(rdmsr(PERFCTR0 + 3), WRAP - 0x80000000);
  wrmsr(PMC0 + 3, 0x123456789abc);
  EXPECT_EQ(rdmsr(PERFCTR0 + 3), 0x123456789abc);
  EXPECT_EQ(rdmsr(PMC0 + 3), 0x123456789abc);
  EXPECT_EQ(rdpmc(3), 0x123456789abc);
  wrmsr(FIXED_CTR0 + 2, 0x1234);
  EXPECT_EQ(rdpmc(RDPMC_FIXED | 2), 0x1234);

  EXPECT_EQ(try_wrmsr(PMC0, WRAP), GP0);
  EXPECT_EQ(try_wrmsr(PERFCTR0 + 4, 0), GP0);
  EXPECT_EQ(try_rdmsr(EVNTSEL0 + 4), GP0);
  EXPECT_EQ(try_wrmsr(EVNTSEL0, 1u << 21), GP0); /* any thread */
  EXPECT_EQ(try_wrmsr(EVNTSEL0, 1ull << 32), GP0);
  EXPECT_EQ(try_wrmsr(FIXED_CTRL, 1u << 2), GP0);
  EXPECT_EQ(try_wrmsr(FIXED_CTRL, 1u << 12), GP0);
  EXPECT_EQ(try_wrmsr(GLOBAL_CTRL, 0x10), GP0);
  EXPECT_EQ(try_wrmsr(GLOBAL_CTRL, 1ull << 35), GP0);
  EXPECT_EQ(try_wrmsr(STATUS, 0), GP0);
  EXPECT_EQ(try_wrmsr(OVF_CTRL, 0x10), GP0);
  EXPECT_EQ(try_wrmsr(OVF_CTRL, 3ull << 62 | 7ull << 32 | 0xf), NO_FAULT);
  EXPECT_EQ(rdmsr(OVF_CTRL), 0);

  EXPECT_EQ(TRY("mov $4, %%ecx\n rdpmc", "b"(0)), GP0);
  EXPECT_EQ(TRY("mov $0x40000003, %%ecx\n rdpmc", "b"(0)), GP0);
  EXPECT_EQ(user_run(GUEST_USER, 0), GP0);
  EXPECT_EQ(write_cr4(read_cr4() | 1u << 8), NO_FAULT);
  EXPECT_EQ(user_run(GUEST_USER, 0), NO_FAULT);
  EXPECT_EQ(user_run(GUEST_USER, RDPMC_FIXED | 2), NO_FAULT);
  EXPECT_EQ(user_run(GUEST_USER, 4), GP0);

  /* events that are not counted stand still; conditions that cannot be told too */
  EXPECT_EQ(COUNT(0x412e, "mov $1000, %%ebx\n 1: dec %%ebx\n jnz 1b\n"), 0);
  EXPECT_EQ(COUNT(INSNS | 2u << 24, ".rept 10\n nop\n .endr\n"), 0);
  EXPECT(COUNT(CYCLES | 1u << 24, ".rept 10\n nop\n .endr\n") > 0);
  done();
}

static void registers(void) {
  struct guest *g = start(guest_registers);
  guest_load(g, GUEST_USER, user_rdpmc, (size_t)(user_rdpmc_end - user_rdpmc));
  inside_run(g);
}

static void guest_absent(void) {
  EXPECT_EQ(rdmsr(PERFCTR0), 0); /* as on processors of the P6 family, and in KVM */
  EXPECT_EQ(try_wrmsr(EVNTSEL0 + 1, INSNS | OS | EN), NO_FAULT);
  EXPECT_EQ(rdmsr(EVNTSEL0 + 1), 0);
  EXPECT_EQ(try_rdmsr(PERFCTR0 + 2), GP0);
  EXPECT_EQ(try_rdmsr(FIXED_CTR0), GP0);
  EXPECT_EQ(try_rdmsr(GLOBAL_CTRL), GP0);
  EXPECT_EQ(try_wrmsr(GLOBAL_CTRL, 0), GP0);
  EXPECT_EQ(try_rdmsr(PMC0), GP0);
  EXPECT_EQ(TRY("xor %%ecx, %%ecx\n rdpmc", "b"(0)), GP0);
  done();
}

static void absent(void) {
  struct guest *g = start(guest_absent);
  guest_cpuid(g, 0xa, 0, ~0u, 0);
  inside_run(g);
  g = guest_new();
  CHECK_EQ(guest_enable(g, KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE), -1); /* too late */
  CHECK_EQ(errno, EINVAL);
  guest_free(g);
  g = guest_new_cap(KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE);
  guest_long(g, (u64)(uintptr_t)guest_absent);
  guest_map_image(g);
  inside_catch(g);
  inside_run(g);
}

/* ---- user space ---- */

static u64 host_msr(struct guest *g, u32 index, bool set, u64 value) {
  struct {
    struct kvm_msrs head;
    struct kvm_msr_entry e;
  } m = {.head.nmsrs = 1, .e = {.index = index, .data = value}};
  CHECK_EQ(guest_ioctl(g->vcpu, set ? KVM_SET_MSRS : KVM_GET_MSRS, &m), 1);
  return m.e.data;
}

static void guest_halves(void) {
  wrmsr(GLOBAL_CTRL, 0);
  wrmsr(EVNTSEL0 + 2, INSNS | OS | EN);
  wrmsr(FIXED_CTRL, 0x1);
  wrmsr(FIXED_CTR0, WRAP - 150);
  /* between two WRMSR: 2 + 100 instructions, two to report, 100 more, three to stop */
  __asm__ volatile(
      "wrmsr\n .rept 100\n nop\n .endr\n mov $1, %%al\n out %%al, $0xe9\n .rept 100\n nop\n .endr\n" STOP ::"c"(GLOBAL_CTRL),
      "a"(4), "d"(1)
      : "memory");
  EXPECT_EQ(rdmsr(PERFCTR0 + 2), 202 + STOP_INSNS);
  EXPECT_EQ(rdmsr(FIXED_CTR0), 202 + STOP_INSNS - 150);
  EXPECT_EQ(rdmsr(STATUS), 1ull << 32);
  done();
}

/* What QEMU and others save, set in another VM in their order: counters stopped, values, then the controls. */
static void migrated(void) {
  static const u32 saved[] = {PERFCTR0 + 2, EVNTSEL0 + 2, FIXED_CTR0, STATUS, FIXED_CTRL, GLOBAL_CTRL};
  struct guest *a = start(guest_halves), *b = start(guest_halves);
  CHECK_EQ(guest_next(a), 1);
  struct kvm_regs regs = guest_regs(a); /* the port's write is complete: KVM moves RIP with the exit */
  struct kvm_sregs sregs = guest_sregs(a);
  CHECK_EQ(host_msr(a, PERFCTR0 + 2, false, 0), 102);
  CHECK_EQ(host_msr(a, PERFCTR0 + 2, false, 0), 102);
  memcpy(b->mem, a->mem, GUEST_MEM);
  guest_set_sregs(b, &sregs);
  guest_set_regs(b, &regs);
  host_msr(b, FIXED_CTRL, true, 0);
  host_msr(b, GLOBAL_CTRL, true, 0);
  for (unsigned n = 0; n < 6; n++) host_msr(b, saved[n], true, host_msr(a, saved[n], false, 0));
  for (unsigned n = 0; n < 6; n++) CHECK_EQ(host_msr(b, saved[n], false, 0), host_msr(a, saved[n], false, 0));
  guest_free(a);
  inside_run(b);
}

/* ---- the event filter ---- */

static int filter(struct guest *g, u32 action, u32 flags, u32 fixed, u32 n, const u64 *events) {
  struct kvm_pmu_event_filter *f = calloc(1, sizeof(*f) + (n + 1) * 8);
  f->action = action, f->flags = flags, f->fixed_counter_bitmap = fixed, f->nevents = n;
  for (u32 k = 0; k < n && events; k++) f->events[k] = events[k];
  int r = guest_ioctl(g->vm, KVM_SET_PMU_EVENT_FILTER, f);
  free(f);
  return r;
}

static void guest_filtered(void) {
  wrmsr(GLOBAL_CTRL, 0);
  wrmsr(EVNTSEL0, INSNS | OS | EN);
  wrmsr(EVNTSEL0 + 1, BRANCHES | OS | EN);
  wrmsr(FIXED_CTRL, 0x111);
  wrmsr(GLOBAL_CTRL, 3 | 7ull << 32);
  for (u8 n = 1;; n++) { /* the host changes the filter at each report */
    LOOP(100);
    report(n);
  }
}

/* Which of the five counters go on until the next report. */
static unsigned moved(struct guest *g) {
  static const u32 all[] = {PERFCTR0, PERFCTR0 + 1, FIXED_CTR0, FIXED_CTR0 + 1, FIXED_CTR0 + 2};
  u64 before[5];
  unsigned bits = 0;
  CHECK_EQ(guest_run(g), 0); /* the last report's OUT ended under the old filter */
  for (unsigned n = 0; n < 5; n++) before[n] = host_msr(g, all[n], false, 0);
  CHECK_EQ(guest_run(g), 0);
  for (unsigned n = 0; n < 5; n++) bits |= (host_msr(g, all[n], false, 0) != before[n]) << n;
  return bits;
}

static void filtered(void) {
  static const u64 insns[] = {INSNS}, both[] = {BRANCHES, INSNS}, other[] = {0x412e};
  struct guest *g = start(guest_filtered);
  CHECK_EQ(guest_run(g), 0);
  CHECK_EQ(moved(g), 0x1f);
  CHECK_EQ(filter(g, KVM_PMU_EVENT_DENY, 0, 0, 1, insns), 0);
  CHECK_EQ(moved(g), 0x1e);
  CHECK_EQ(filter(g, KVM_PMU_EVENT_DENY, 0, 5, 2, both), 0);
  CHECK_EQ(moved(g), 0x08);
  CHECK_EQ(filter(g, KVM_PMU_EVENT_ALLOW, 0, 1, 1, insns), 0);
  CHECK_EQ(moved(g), 0x05);
  CHECK_EQ(filter(g, KVM_PMU_EVENT_ALLOW, 0, 7, 1, other), 0);
  CHECK_EQ(moved(g), 0x1c);
  CHECK_EQ(filter(g, KVM_PMU_EVENT_ALLOW, 0, 0, 0, NULL), 0);
  CHECK_EQ(moved(g), 0);
  CHECK_EQ(filter(g, KVM_PMU_EVENT_DENY, 0, 0, 0, NULL), 0);
  CHECK_EQ(moved(g), 0x1f);
  CHECK_EQ(filter(g, 2, 0, 0, 0, NULL), -1);
  CHECK_EQ(errno, EINVAL);
  CHECK_EQ(filter(g, KVM_PMU_EVENT_DENY, 1, 0, 0, NULL), -1);
  CHECK_EQ(errno, EINVAL);
  CHECK_EQ(filter(g, KVM_PMU_EVENT_DENY, 0, 0, 301, NULL), -1);
  CHECK_EQ(errno, E2BIG);
  CHECK_EQ(filter(g, KVM_PMU_EVENT_DENY, 0, 0, 300, NULL), 0);
  guest_free(g);
}

/* ---- what it costs ---- */

static u64 fastest_loop(void) {
  u64 best = ~0ull;
  for (unsigned n = 0; n < 200; n++) { /* short ones: some find no other program in their way */
    u64 t = rdtsc();
    __asm__ volatile("mov $20000, %%ecx\n 1: dec %%ecx\n jnz 1b" ::: "ecx");
    t = rdtsc() - t;
    if (t < best) best = t;
  }
  return best;
}

static volatile u64 at[3];

static void guest_costs(void) {
  fastest_loop();
  at[0] = fastest_loop();
  wrmsr(EVNTSEL0, INSNS | OS | EN);
  wrmsr(GLOBAL_CTRL, 1);
  LOOP(10);
  wrmsr(GLOBAL_CTRL, 0);
  at[1] = fastest_loop(); /* a counter has run */
  wrmsr(FIXED_CTRL, 0xb0);
  wrmsr(GLOBAL_CTRL, 2ull << 32);
  at[2] = fastest_loop(); /* cycles are counted, as by a watchdog */
  done();
}

/* Counting instructions keeps to the interpreter; nothing else may slow the guest down. */
static void costs(void) {
  struct guest *g = start(guest_costs);
  inside_run(g);
  CHECK(at[1] < at[0] + at[0] / 2);
  CHECK(at[2] < at[0] + at[0] / 2);
}

GUEST_MAIN({"exact", exact}, {"branches", branches}, {"rings", rings}, {"cycles", cycles}, {"overflow", overflow},
           {"registers", registers}, {"absent", absent}, {"migrated", migrated}, {"filtered", filtered}, {"costs", costs})

/* HLT and MWAIT that are the guest's own (KVM_CAP_X86_DISABLE_EXITS, api.rst 7.13): no exit; what ends the wait on a processor
 * ends it here. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/time.h>
#include <unistd.h>
#include "inside.h"

#define MWAIT KVM_X86_DISABLE_EXITS_MWAIT
#define HLT   KVM_X86_DISABLE_EXITS_HLT

static void on_signal(int sig) {}

static void signal_in(unsigned ms) {
  setitimer(ITIMER_REAL, &(struct itimerval){.it_value.tv_usec = 1000 * (int)ms, .it_interval.tv_usec = 1000 * (int)ms}, NULL);
}
static void no_signal(void) {
  setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
}

/* ---- HLT ---- */

/* Without interrupt controllers in the KVM: neither an exit nor an end, until the client brings an interrupt. */
static void halt_without_chips(void) {
  sigaction(SIGALRM, &(struct sigaction){.sa_handler = on_signal}, NULL);
  struct guest *g = guest_new_cap(KVM_CAP_X86_DISABLE_EXITS, HLT);
  guest_long(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, (u8[]){0xfb, 0xf4, 0xb0, 3, 0xe6, GUEST_PORT}, 6); /* sti; hlt; report */
  for (unsigned n = 0; n < 3; n++) {
    signal_in(20);
    CHECK_EQ(guest_ioctl(g->vcpu, KVM_RUN, NULL), -1);
    CHECK_EQ(errno, EINTR);
    no_signal();
    CHECK_EQ(guest_regs(g).rip, GUEST_CODE + 2);
  }
  CHECK_EQ(guest_stat(g->vcpu, "halt_exits"), 0);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_INTERRUPT, &(struct kvm_interrupt){.irq = 0x40}), 0);
  CHECK_EQ(guest_next(g), TRAP(0x40));
  CHECK_EQ(guest_stack(g, 0, 8), GUEST_CODE + 2);
  guest_free(g);
}

static volatile u32 ticks;
HANDLER on_tick(struct frame *f) {
  ticks = ticks + 1;
  eoi();
}

enum { TICKS = 20 };
static void guest_halts(void) {
  apic_on();
  pic_off();
  apic_write(A_LVT_TIME, 0x20000 | 0x40);
  apic_write(A_TDCR, 0xb);
  apic_write(A_TMICT, 1000000);
  for (u32 n = 0; n < TICKS; n++) {
    u32 before = ticks;
    halt_once();
    EXPECT(ticks != before);
  }
  done();
}

static void halt_until_timer(void) {
  struct guest *g = start_function(guest_halts);
  CHECK_EQ(guest_enable(g, KVM_CAP_X86_DISABLE_EXITS, HLT), 0);
  inside_catch(g);
  HANDLE(g, 0x40, on_tick);
  CHECK_EQ(guest_next(g), DONE);
  CHECK_EQ(guest_stat(g->vcpu, "halt_exits"), 0);
  CHECK_EQ(guest_stat(g->vcpu, "halt_wait_ns"), 0); /* it never slept */
  inside_check();
  guest_free(g);
}

/* ---- MWAIT ---- */

static volatile u64 line[8] __attribute__((aligned(64))), wakes, idle_wakes;
static volatile u32 finish;

static u32 try_monitor(u64 at, u32 extensions) {
  return TRY("mov %0, %%rax\n mov %1, %%ecx\n xor %%edx, %%edx\n monitor", "r"(at), "r"(extensions));
}
static u32 try_mwait(u32 extensions) {
  return TRY("xor %%eax, %%eax\n mov %0, %%ecx\n mwait", "r"(extensions));
}

static void guest_waits(void) {
  u64 at = (u64)(uintptr_t)line, seen = 0;
  EXPECT_EQ(try_monitor(at, 1), GP0);
  EXPECT_EQ(try_monitor(0x700000000000, 0), PF(0));
  EXPECT_EQ(try_monitor(1ull << 62, 0), GP0);
  EXPECT_EQ(try_mwait(2), GP0);
  EXPECT_EQ(try_mwait(0), NO_FAULT); /* nothing is monitored */
  report(1);
  while (!finish) {
    EXPECT_EQ(try_monitor(at + 5, 0), NO_FAULT);
    if (line[3] == seen) {
      EXPECT_EQ(try_mwait(1), NO_FAULT);
      if (line[3] == seen) idle_wakes = idle_wakes + 1;
    }
    if (line[3] == seen) continue;
    seen = line[3];
    wakes = wakes + 1;
  }
  report(2);
  /* What was stored between MONITOR and MWAIT ends the wait at once: a million of these would be a thousand seconds else. */
  for (u64 n = 0; n < 1000000; n++) {
    EXPECT_EQ(try_monitor(at, 0), NO_FAULT);
    line[7] = n + 1;
    EXPECT_EQ(try_mwait(0), NO_FAULT);
  }
  done();
}

static void *runs(void *arg) {
  CHECK_EQ(guest_next(arg), 2);
  return NULL;
}

/* Another processor's stores are noticed at once; between them the guest looks once a millisecond, not all the time. */
static void wait_for_store(void) {
  struct guest *g = inside_start(guest_waits);
  pthread_t thread;
  CHECK_EQ(guest_enable(g, KVM_CAP_X86_DISABLE_EXITS, MWAIT), 0);
  CHECK_EQ(guest_next(g), 1);
  ticks_per_ms = (u64)guest_ioctl(g->vcpu, KVM_GET_TSC_KHZ, NULL);
  u64 begin = rdtsc();
  pthread_create(&thread, NULL, runs, g);
  for (u64 n = 1; n <= 100; n++) {
    line[3] = n;
    for (u64 from = rdtsc(); wakes < n && rdtsc() - from < 20000 * ticks_per_ms;) usleep(100);
    CHECK_EQ(wakes, n);
    usleep(500);
  }
  finish = 1;
  pthread_join(thread, NULL);
  CHECK(idle_wakes <= (rdtsc() - begin) / ticks_per_ms + 2);
  CHECK_EQ(guest_next(g), DONE);
  inside_check();
  guest_free(g);
}

static void guest_waits_for_interrupt(void) {
  apic_on();
  pic_off();
  apic_write(A_LVT_TIME, 0x20000 | 0x40);
  apic_write(A_TDCR, 0xb);
  apic_write(A_TMICT, 200000);
  sti();
  while (ticks < TICKS) {
    try_monitor((u64)(uintptr_t)line, 0);
    try_mwait(0);
  }
  cli();
  done();
}

static void wait_for_interrupt(void) {
  struct guest *g = start_function(guest_waits_for_interrupt);
  CHECK_EQ(guest_enable(g, KVM_CAP_X86_DISABLE_EXITS, MWAIT), 0);
  inside_catch(g);
  HANDLE(g, 0x40, on_tick);
  ticks = 0;
  inside_run(g);
}

static void which(void) {
  struct guest *g = guest_new();
  u64 all = (u64)guest_ioctl(g->sys, KVM_CHECK_EXTENSION, (void *)KVM_CAP_X86_DISABLE_EXITS);
  CHECK_EQ(all, MWAIT | HLT | KVM_X86_DISABLE_EXITS_PAUSE);
  CHECK_EQ(guest_enable(g, KVM_CAP_X86_DISABLE_EXITS, all), 0);
  CHECK_EQ(guest_enable(g, KVM_CAP_X86_DISABLE_EXITS, KVM_X86_DISABLE_EXITS_CSTATE), 0); /* known, and without effect */
  CHECK_EQ(guest_enable(g, KVM_CAP_X86_DISABLE_EXITS, 16), -1);
  CHECK_EQ(errno, EINVAL);
  guest_free(g);
}

GUEST_MAIN({"halt-without-chips", halt_without_chips}, {"halt-until-timer", halt_until_timer}, {"wait-for-store", wait_for_store},
           {"wait-for-interrupt", wait_for_interrupt}, {"which", which})

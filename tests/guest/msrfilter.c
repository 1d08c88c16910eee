/* MSR filters (api.rst 4.135): which range decides, what is never filtered, and that a vCPU which runs sees a new filter at once.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>
#include "inside.h"

#define SYSENTER_CS  0x174u
#define SYSENTER_ESP 0x175u
#define SYSENTER_EIP 0x176u

enum { READ = KVM_MSR_FILTER_READ, WRITE = KVM_MSR_FILTER_WRITE };

static struct kvm_msr_filter filter;

static void set_filter(struct guest *g, u32 flags) {
  filter.flags = flags;
  CHECK_EQ(guest_ioctl(g->vm, KVM_X86_SET_MSR_FILTER, &filter), 0);
}

/* A range of one register. */
static void decide(unsigned range, u32 flags, u32 msr, bool allowed) {
  static u8 bits[2] = {0, 1};
  filter.ranges[range] = (struct kvm_msr_filter_range){.flags = flags, .nmsrs = 1, .base = msr, .bitmap = &bits[allowed]};
}

static struct guest *start(void (*f)(void)) {
  struct guest *g = start_function(f);
  inside_catch(g);
  filter = (struct kvm_msr_filter){0};
  return g;
}

static u32 try_rdmsr(u32 msr) {
  return TRY("mov %0, %%ecx\n rdmsr", "r"(msr));
}
static u32 try_wrmsr(u32 msr) {
  return TRY("mov %0, %%ecx\n xor %%eax, %%eax\n xor %%edx, %%edx\n wrmsr", "r"(msr));
}

/* ---- which range decides ---- */

static volatile struct {
  u32 msr;
  bool reads, writes;
} expected[16];
static volatile unsigned n_expected;

/* Several times: what was decided is remembered, and registers get in each other's way there. */
static void guest_decides(void) {
  for (;;) {
    for (unsigned n = 0; n < 3 * n_expected; n++) {
      unsigned k = n % n_expected;
      EXPECT_EQ(try_rdmsr(expected[k].msr), expected[k].reads ? NO_FAULT : GP0);
      EXPECT_EQ(try_wrmsr(expected[k].msr), expected[k].writes ? NO_FAULT : GP0);
    }
    report(1);
  }
}

static void expect_msr(u32 msr, bool reads, bool writes) {
  expected[n_expected].msr = msr;
  expected[n_expected].reads = reads;
  expected[n_expected].writes = writes;
  n_expected = n_expected + 1;
}

static void meets(struct guest *g) {
  CHECK_EQ(guest_next(g), 1);
  inside_check();
  n_bad = n_expected = 0;
}

static void ranges(void) {
  struct guest *g = start(guest_decides);
  decide(0, READ, SYSENTER_CS, true);
  decide(3, READ | WRITE, SYSENTER_CS,
         false); /* the first that names the direction; ranges without registers count for nothing */
  decide(5, WRITE, SYSENTER_ESP, false);
  decide(6, READ | WRITE, SYSENTER_ESP, true);
  decide(7, READ | WRITE, 0xc0000082, false);
  decide(9, READ | WRITE, 0, false);
  decide(15, READ, 0x83f, false); /* the x2APIC's are never filtered; in xAPIC mode there are none */
  set_filter(g, 0);
  expect_msr(SYSENTER_CS, true, false);
  expect_msr(SYSENTER_ESP, true, false);
  expect_msr(SYSENTER_EIP, true, true);
  expect_msr(0xc0000082, false, false);
  expect_msr(0xc0000083, true, true);
  expect_msr(0, false, false);
  expect_msr(1, true, false); /* which nobody can write */
  meets(g);
  set_filter(g, KVM_MSR_FILTER_DEFAULT_DENY);
  expect_msr(SYSENTER_CS, true, false);
  expect_msr(SYSENTER_ESP, true, false);
  expect_msr(SYSENTER_EIP, false, false);
  expect_msr(0xc0000083, false, false);
  expect_msr(1, false, false);
  meets(g);
  filter = (struct kvm_msr_filter){0};
  set_filter(g, 0);
  expect_msr(SYSENTER_CS, true, true);
  expect_msr(0xc0000082, true, true);
  meets(g);
  guest_free(g);
}

static void guest_x2apic(void) {
  x2apic_on();
  EXPECT_EQ(try_rdmsr(X2(A_SVR)), NO_FAULT);
  EXPECT_EQ(try_rdmsr(SYSENTER_CS), GP0);
  done();
}

static void x2apic(void) {
  struct guest *g = start(guest_x2apic);
  decide(0, READ | WRITE, MSR_APIC_BASE, true);
  decide(1, READ | WRITE, X2(A_SVR), false);
  set_filter(g, KVM_MSR_FILTER_DEFAULT_DENY);
  inside_run(g);
}

/* ---- while the vCPU runs ---- */

#define SWITCHES 100

static volatile u64 turns;
static volatile u32 finish;

static void guest_turns(void) {
  while (!finish) {
    rdmsr(SYSENTER_CS);
    turns = turns + 1;
  }
  done();
}

static atomic_ulong denied;

static void *runs(void *arg) {
  struct guest *g = arg;
  while (guest_run(g) == 0 && g->run->exit_reason == KVM_EXIT_X86_RDMSR) {
    CHECK_EQ(g->run->msr.reason, KVM_MSR_EXIT_REASON_FILTER);
    CHECK_EQ(g->run->msr.index, SYSENTER_CS);
    atomic_fetch_add(&denied, 1);
  }
  CHECK_EQ(g->run->exit_reason, KVM_EXIT_IO);
  return NULL;
}

static void wait_turns(u64 n) {
  for (u64 from = turns; turns - from < n;) usleep(10);
}

/* From the return of the ioctl on no access goes the old way: all that was done since denial was denied, and nothing since then.
 */
static void live(void) {
  struct guest *g = start(guest_turns);
  pthread_t thread;
  turns = finish = 0;
  CHECK_EQ(guest_enable(g, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER), 0);
  pthread_create(&thread, NULL, runs, g);
  wait_turns(1);
  for (unsigned n = 0; n < SWITCHES; n++) {
    decide(0, READ, SYSENTER_CS, false);
    set_filter(g, 0);
    u64 turn = turns, count = atomic_load(&denied);
    wait_turns(3);
    CHECK(turns - turn <= atomic_load(&denied) - count + 2); /* one was on its way, one may be counted later */
    decide(0, READ, SYSENTER_CS, true);
    set_filter(g, 0);
    count = atomic_load(&denied);
    wait_turns(100);
    CHECK(atomic_load(&denied) - count <= 1);
  }
  finish = 1;
  pthread_join(thread, NULL);
  guest_free(g);
}

GUEST_MAIN({"ranges", ranges}, {"x2apic", x2apic}, {"live", live})

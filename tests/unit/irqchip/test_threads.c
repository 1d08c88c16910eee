/* Delivery from many threads beside the owner: nothing is lost, nothing is taken twice (run it with TSan too). */
#include "fake.h"
#include <pthread.h>
#include <sched.h>

#define SENDERS 3
#define ROUNDS  20000

static _Atomic unsigned taken[256];
static _Atomic bool done;

/* Sends its own vectors one at a time, each after the last was taken. */
static void *sender(void *arg) {
  unsigned self = (unsigned)(uintptr_t)arg;
  for (unsigned k = 0; k < ROUNDS; k++) {
    unsigned v = 0x20 + self * 64 + k % 64, before = atomic_load(&taken[v]);
    if (x86_msi_deliver(&fake.vm, k & 1 ? 0xfee01000 : 0xfee02004, v) != 1) continue; /* just then software-disabled or renamed */
    while (atomic_load(&taken[v]) == before && !atomic_load(&done)) sched_yield();
  }
  return NULL;
}

static void *line(void *arg) {
  while (!atomic_load(&done)) {
    fake_line(20, 1);
    fake_line(20, 0);
    sched_yield();
  }
  return NULL;
}

static void senders_and_owner(void **s) {
  struct x86_vcpu *c;
  pthread_t t[SENDERS + 1];
  unsigned lines = 0, total = 0;
  fake_start('k', 2, 0);
  c = fake.vcpu[1];
  apic_enable(1);
  apic_write(1, REG_LDR, 2u << 24);
  fake_mmio_write(0xfec00000, 0x39), fake_mmio_write(0xfec00010, 1u << 24);
  fake_mmio_write(0xfec00000, 0x38), fake_mmio_write(0xfec00010, 0x80f0);
  for (uintptr_t k = 0; k < SENDERS; k++) pthread_create(&t[k], NULL, sender, (void *)k);
  pthread_create(&t[SENDERS], NULL, line, NULL);
  while (total < SENDERS * ROUNDS) {
    if (!atomic_exchange(&c->core.requests, 0)) {
      sched_yield();
      continue;
    }
    for (int v; (v = x86_irq_ack(c)) >= 0;) {
      apic_write(1, REG_EOI, 0);
      if (v == 0xf0)
        lines++;
      else
        total++;
      atomic_fetch_add(&taken[v], 1);
    }
    if (lines % 64 == 7) apic_write(1, REG_LDR, 2u << 24); /* the map is looked at again */
  }
  atomic_store(&done, true);
  for (unsigned k = 0; k <= SENDERS; k++) pthread_join(t[k], NULL);
  for (unsigned v = 0x20; v < 0x20 + SENDERS * 64; v++) assert_in_range(atomic_load(&taken[v]), ROUNDS / 64, ROUNDS / 64 + 1);
  fake_stop();
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(senders_and_owner)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

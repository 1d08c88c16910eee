/* The real-time clock and its CMOS memory (Motorola MC146818A data sheet; Intel ICH9, 13.6 for the extension).
 *
 * The date is the host's UTC plus an offset of whole seconds that the guest may set.  Interrupt flags that nobody waits for are
 * worked out when register C is read; a timer runs only while the guest has enabled an interrupt. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vmm/dev/dev.h"
#include "vmm/loop.h"
#include "vmm/vmm.h"

enum { RTC_GSI = 8, SECOND_NS = 1000000000 };
enum {
  SEC = 0,
  SEC_ALARM,
  MIN,
  MIN_ALARM,
  HOUR,
  HOUR_ALARM,
  WDAY,
  MDAY,
  MONTH,
  YEAR,
  REG_A,
  REG_B,
  REG_C,
  REG_D,
  CENTURY = 0x32
};
enum { A_UIP = 0x80, A_RATE = 0xf };
enum { B_SET = 0x80, B_PIE = 0x40, B_AIE = 0x20, B_UIE = 0x10, B_BINARY = 4, B_24H = 2 };
enum { C_IRQF = 0x80, C_PF = 0x40, C_AF = 0x20, C_UF = 0x10 };
enum { UIP_NS = 244000, DONT_CARE = 0xc0 };

/* All fields are guarded by vmm->lock. */
struct rtc {
  struct vmm *vmm;
  struct vmm_timer *timer;
  uint8_t index, cmos[128];
  int64_t offset;       /* guest's date minus the host's, seconds */
  int64_t seen_second;  /* guest's second up to which update and alarm flags are worked out */
  uint64_t next_period; /* when the next periodic flag is due (CLOCK_MONOTONIC), 0: off */
  bool line;
};

static uint64_t monotonic_ns(void) {
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return (uint64_t)ts.tv_sec * SECOND_NS + (uint64_t)ts.tv_nsec;
}

static int64_t guest_seconds(const struct rtc *r, long *ns) {
  struct timespec ts;
  clock_gettime(CLOCK_REALTIME, &ts);
  if (ns) *ns = ts.tv_nsec;
  return ts.tv_sec + r->offset;
}

/* ---- the date as registers ---- */

static uint8_t encode(const struct rtc *r, int value) {
  return (uint8_t)(r->cmos[REG_B] & B_BINARY ? value : value / 10 << 4 | value % 10);
}
static int decode(const struct rtc *r, uint8_t reg) {
  return r->cmos[REG_B] & B_BINARY ? reg : (reg >> 4) * 10 + (reg & 0xf);
}

static uint8_t encode_hour(const struct rtc *r, int hour) {
  if (r->cmos[REG_B] & B_24H) return encode(r, hour);
  int h12 = hour % 12 ? hour % 12 : 12;
  return (uint8_t)(encode(r, h12) | (hour >= 12 ? 0x80 : 0));
}

static int decode_hour(const struct rtc *r, uint8_t reg) {
  if (r->cmos[REG_B] & B_24H) return decode(r, reg);
  return decode(r, reg & 0x7f) % 12 + (reg & 0x80 ? 12 : 0);
}

static void date_to_registers(struct rtc *r) {
  struct tm tm;
  time_t t = (time_t)guest_seconds(r, NULL);
  gmtime_r(&t, &tm);
  r->cmos[SEC] = encode(r, tm.tm_sec % 60);
  r->cmos[MIN] = encode(r, tm.tm_min);
  r->cmos[HOUR] = encode_hour(r, tm.tm_hour);
  r->cmos[WDAY] = encode(r, tm.tm_wday + 1);
  r->cmos[MDAY] = encode(r, tm.tm_mday);
  r->cmos[MONTH] = encode(r, tm.tm_mon + 1);
  r->cmos[YEAR] = encode(r, tm.tm_year % 100);
  r->cmos[CENTURY] = encode(r, tm.tm_year / 100 + 19);
}

static void registers_to_date(struct rtc *r) {
  struct tm tm = {
      .tm_sec = decode(r, r->cmos[SEC]),
      .tm_min = decode(r, r->cmos[MIN]),
      .tm_hour = decode_hour(r, r->cmos[HOUR]),
      .tm_mday = decode(r, r->cmos[MDAY]),
      .tm_mon = decode(r, r->cmos[MONTH]) - 1,
      .tm_year = decode(r, r->cmos[YEAR]) + (decode(r, r->cmos[CENTURY]) - 19) * 100,
  };
  r->offset += (int64_t)timegm(&tm) - guest_seconds(r, NULL);
  r->seen_second = guest_seconds(r, NULL);
}

static bool is_date_register(uint8_t index) {
  return (index <= YEAR && index != SEC_ALARM && index != MIN_ALARM && index != HOUR_ALARM) || index == CENTURY;
}

/* ---- interrupts ---- */

/* The period in ns of rate 1-15 (table 5, 32.768 kHz time base; rates 1 and 2 repeat 8 and 9); 0: none. */
static uint64_t period_ns(const struct rtc *r) {
  unsigned rate = r->cmos[REG_A] & A_RATE;
  if (rate == 0) return 0;
  if (rate <= 2) rate += 7;
  return ((uint64_t)SECOND_NS << (rate - 1)) / 32768;
}

/* Alarm registers with both top bits set match anything. */
static bool alarm_matches(const struct rtc *r, int64_t second) {
  int of_day = (int)(((second % 86400) + 86400) % 86400);
  const uint8_t *c = r->cmos;
  return (c[SEC_ALARM] >= DONT_CARE || c[SEC_ALARM] == encode(r, of_day % 60)) &&
         (c[MIN_ALARM] >= DONT_CARE || c[MIN_ALARM] == encode(r, of_day / 60 % 60)) &&
         ((c[HOUR_ALARM] & DONT_CARE) == DONT_CARE || c[HOUR_ALARM] == encode_hour(r, of_day / 3600));
}

static void work_out_flags(struct rtc *r) {
  uint64_t now = monotonic_ns(), period = period_ns(r);
  int64_t second = guest_seconds(r, NULL);
  if (period && r->next_period && now >= r->next_period) {
    r->cmos[REG_C] |= C_PF;
    r->next_period += ((now - r->next_period) / period + 1) * period;
  }
  if (r->cmos[REG_B] & B_SET) return;
  if (second > r->seen_second) r->cmos[REG_C] |= C_UF;
  if (second - r->seen_second > 86400 || second < r->seen_second) r->seen_second = second - 1;
  while (r->seen_second < second)
    if (alarm_matches(r, ++r->seen_second)) r->cmos[REG_C] |= C_AF;
}

static void update_line(struct rtc *r) {
  bool level = r->cmos[REG_C] & r->cmos[REG_B] & (B_PIE | B_AIE | B_UIE); /* the flags lie where their enables do */
  r->cmos[REG_C] = (uint8_t)((r->cmos[REG_C] & ~C_IRQF) | (level ? C_IRQF : 0));
  if (level != r->line) vmm_irq_set(r->vmm, RTC_GSI, level);
  r->line = level;
}

/* Sets the timer to the next event that the guest wants an interrupt for. */
static void plan(struct rtc *r) {
  uint64_t now = monotonic_ns(), at = UINT64_MAX, period = period_ns(r);
  if (!period)
    r->next_period = 0;
  else if (!r->next_period)
    r->next_period = now + period;
  if (r->cmos[REG_B] & B_PIE && period) at = r->next_period;
  if (r->cmos[REG_B] & (B_AIE | B_UIE) && !(r->cmos[REG_B] & B_SET)) {
    long ns;
    guest_seconds(r, &ns);
    uint64_t next_second = now + (uint64_t)(SECOND_NS - ns);
    if (next_second < at) at = next_second;
  }
  if (at == UINT64_MAX)
    vmm_timer_cancel(r->timer);
  else
    vmm_timer_arm(r->timer, at);
}

static void on_timer(void *opaque) {
  struct rtc *r = opaque;
  vmm_lock(r->vmm);
  work_out_flags(r);
  update_line(r);
  plan(r);
  vmm_unlock(r->vmm);
}

/* ---- registers ---- */

static uint8_t read_a(const struct rtc *r) {
  long ns;
  guest_seconds(r, &ns);
  bool updating = ns >= SECOND_NS - UIP_NS && !(r->cmos[REG_B] & B_SET);
  return (uint8_t)((r->cmos[REG_A] & ~A_UIP) | (updating ? A_UIP : 0));
}

static uint8_t read_c(struct rtc *r) {
  work_out_flags(r);
  update_line(r);
  uint8_t value = r->cmos[REG_C];
  r->cmos[REG_C] = 0;
  update_line(r);
  return value;
}

static uint8_t cmos_read_byte(struct rtc *r) {
  if (r->index == REG_A) return read_a(r);
  if (r->index == REG_C) return read_c(r);
  if (is_date_register(r->index) && !(r->cmos[REG_B] & B_SET)) date_to_registers(r);
  return r->cmos[r->index];
}

static void write_b(struct rtc *r, uint8_t value) {
  uint8_t old = r->cmos[REG_B];
  if (value & B_SET && !(old & B_SET)) date_to_registers(r); /* the registers stand still from here */
  if (value & B_SET) value &= (uint8_t)~B_UIE;               /* SET clears UIE */
  work_out_flags(r);
  r->cmos[REG_B] = value;
  if (old & B_SET && !(value & B_SET)) registers_to_date(r);
  update_line(r);
}

static void cmos_write_byte(struct rtc *r, uint8_t value) {
  switch (r->index) {
  case REG_A:
    r->cmos[REG_A] = value & (uint8_t)~A_UIP;
    r->next_period = 0;
    break;
  case REG_B:
    write_b(r, value);
    break;
  case REG_C:
  case REG_D:
    return; /* read-only */
  default:
    if (is_date_register(r->index) && !(r->cmos[REG_B] & B_SET)) date_to_registers(r);
    r->cmos[r->index] = value;
    if (is_date_register(r->index) && !(r->cmos[REG_B] & B_SET)) registers_to_date(r);
    if (r->index > YEAR) return;
  }
  plan(r);
}

static void rtc_read(void *dev, uint64_t addr, void *data, unsigned len) {
  struct rtc *r = dev;
  memset(data, 0xff, len);
  *(uint8_t *)data = addr == 0 ? 0xff : cmos_read_byte(r); /* the index port is write-only */
}

static void rtc_write(void *dev, uint64_t addr, const void *data, unsigned len) {
  struct rtc *r = dev;
  const uint8_t *p = data;
  if (addr == 0) r->index = *p++ & 0x7f; /* bit 7 masks NMI, which this machine has none of */
  if (addr == 1 || len > 1) cmos_write_byte(r, *p);
}

/* ---- life ---- */

/* The clock itself and CMOS live on through a reset; interrupt enables do not. */
static void rtc_reset(void *dev) {
  struct rtc *r = dev;
  r->cmos[REG_A] = 0x26;
  r->cmos[REG_B] = B_24H;
  r->cmos[REG_C] = 0;
  r->index = 0;
  r->next_period = 0;
  r->seen_second = guest_seconds(r, NULL);
  update_line(r);
  plan(r);
}

static void put16(struct rtc *r, uint8_t at, uint64_t value) {
  if (value > 0xffff) value = 0xffff;
  r->cmos[at] = (uint8_t)value;
  r->cmos[at + 1] = (uint8_t)(value >> 8);
}

/* Memory sizes where PC firmware keeps them. */
static void fill_cmos(struct rtc *r, uint64_t memory, unsigned cpus) {
  const uint64_t hole = 0xc0000000ull;
  uint64_t low = memory < hole ? memory : hole, high = memory - low;
  r->cmos[REG_D] = 0x80; /* battery good */
  put16(r, 0x15, 640);
  put16(r, 0x17, low > 1 << 20 ? (low - (1 << 20)) / 1024 : 0);
  put16(r, 0x30, low > 1 << 20 ? (low - (1 << 20)) / 1024 : 0);
  put16(r, 0x34, low > 16 << 20 ? (low - (16 << 20)) / 65536 : 0);
  put16(r, 0x5b, high / 65536 & 0xffff);
  r->cmos[0x5d] = (uint8_t)(high / 65536 >> 16);
  r->cmos[0x5f] = (uint8_t)(cpus - 1);
}

static void rtc_destroy(void *dev) {
  struct rtc *r = dev;
  vmm_timer_destroy(r->timer);
  free(r);
}

int rtc_create(struct vmm *vmm, uint64_t memory, unsigned cpus) {
  static const struct vmm_range_ops ops = {rtc_read, rtc_write};
  struct rtc *r = calloc(1, sizeof(*r));
  if (!r) return -ENOMEM;
  r->vmm = vmm;
  r->timer = vmm_timer_create(vmm_event_loop(vmm), on_timer, r);
  int err = r->timer ? vmm_on_destroy(vmm, rtc_destroy, r) : -ENOMEM;
  if (err) {
    rtc_destroy(r);
    return err;
  }
  fill_cmos(r, memory, cpus);
  rtc_reset(r);
  err = vmm_on_reset(vmm, rtc_reset, r);
  return err ? err : vmm_pio_add(vmm, 0x70, 2, &ops, r);
}

/* Unit tests of the legacy devices, the buses and the event loop. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/vmm/unit/fake_kvm.h"
#include "vmm/acpi/tables.h"
#include "vmm/backend/console.h"
#include "vmm/bus.h"
#include "vmm/dev/dev.h"
#include "vmm/loop.h"
#include "vmm/vmm.h"

static struct vmm *vmm;
static struct console *con;
static char log_path[] = "/tmp/uvirt-test-XXXXXX";

static int set_up(void **state) {
  vmm = fake_machine_create();
  return vmm ? 0 : -1;
}

static int tear_down(void **state) {
  fake_machine_destroy(vmm);
  return 0;
}

/* A serial port on a file (input: none). */
static void make_uart(void) {
  char spec[64], err[CONSOLE_ERR_LEN];
  strcpy(log_path, "/tmp/uvirt-test-XXXXXX");
  close(mkstemp(log_path));
  snprintf(spec, sizeof(spec), "file=%s", log_path);
  con = console_open(vmm, spec, err);
  assert_non_null(con);
  assert_int_equal(uart_create(vmm, 0x3f8, 4, con), 0);
}

static void end_uart(const char *expected) {
  char text[256] = "";
  console_close(con);
  FILE *f = fopen(log_path, "r");
  assert_non_null(f);
  text[fread(text, 1, sizeof(text) - 1, f)] = 0;
  fclose(f);
  unlink(log_path);
  assert_string_equal(text, expected);
}

enum { THR = 0x3f8, IER = 0x3f9, IIR = 0x3fa, LCR = 0x3fb, MCR = 0x3fc, LSR = 0x3fd, MSR = 0x3fe, SCR = 0x3ff };

static void uart_writes_characters(void **state) {
  make_uart();
  for (const char *p = "hello\nworld"; *p; p++) {
    assert_int_equal(fake_in(vmm, LSR, 1) & 0x60, 0x60);
    fake_out(vmm, THR, (uint8_t)*p, 1);
  }
  end_uart("hello\nworld");
}

/* PC16550D 8.5: enabling THRE interrupts with an empty transmitter interrupts; reading IIR as the source clears it. */
static void uart_transmit_interrupt(void **state) {
  make_uart();
  assert_int_equal(fake_in(vmm, IIR, 1), 1);
  fake_out(vmm, IER, 2, 1);
  assert_true(fake_line(4));
  assert_int_equal(fake_in(vmm, IIR, 1), 2);
  assert_false(fake_line(4));
  assert_int_equal(fake_in(vmm, IIR, 1), 1);
  unsigned before = fake_edges(4);
  fake_out(vmm, THR, 'x', 1);
  fake_out(vmm, THR, 'y', 1);
  assert_int_equal(fake_edges(4), before + 2); /* an edge for each, for the pin is edge-triggered */
  fake_out(vmm, IER, 0, 1);
  assert_false(fake_line(4));
  end_uart("xy");
}

static void uart_loopback(void **state) {
  make_uart();
  fake_out(vmm, IIR, 1, 1);    /* FIFOs on, trigger at 1 */
  fake_out(vmm, MCR, 0x1a, 1); /* loop, OUT2, RTS */
  assert_int_equal(fake_in(vmm, MSR, 1) & 0xf0, 0x90);
  fake_out(vmm, IER, 1, 1);
  fake_out(vmm, THR, 0x41, 1);
  fake_out(vmm, THR, 0x42, 1);
  assert_true(fake_line(4));
  assert_int_equal(fake_in(vmm, IIR, 1), 0xc4);
  assert_int_equal(fake_in(vmm, LSR, 1) & 1, 1);
  assert_int_equal(fake_in(vmm, THR, 1), 0x41);
  assert_int_equal(fake_in(vmm, THR, 1), 0x42);
  assert_int_equal(fake_in(vmm, LSR, 1) & 1, 0);
  assert_false(fake_line(4));
  end_uart("");
}

static void uart_registers(void **state) {
  make_uart();
  fake_out(vmm, SCR, 0x5a, 1);
  assert_int_equal(fake_in(vmm, SCR, 1), 0x5a);
  fake_out(vmm, LCR, 0x83, 1);
  fake_out(vmm, THR, 0x34, 1);
  fake_out(vmm, IER, 0x12, 1);
  assert_int_equal(fake_in(vmm, THR, 1), 0x34);
  assert_int_equal(fake_in(vmm, IER, 1), 0x12);
  fake_out(vmm, LCR, 3, 1);
  assert_int_equal(fake_in(vmm, IER, 1), 0);
  fake_out(vmm, IIR, 0xc1, 1);
  assert_int_equal(fake_in(vmm, IIR, 1), 0xc1);
  fake_reset(vmm);
  assert_int_equal(fake_in(vmm, IIR, 1), 1);
  assert_int_equal(fake_in(vmm, LCR, 1), 0);
  end_uart("");
}

static uint8_t cmos(uint8_t index) {
  fake_out(vmm, 0x70, index, 1);
  return (uint8_t)fake_in(vmm, 0x71, 1);
}

static void set_cmos(uint8_t index, uint8_t value) {
  fake_out(vmm, 0x70, index, 1);
  fake_out(vmm, 0x71, value, 1);
}

static int bcd(uint8_t v) {
  return (v >> 4) * 10 + (v & 15);
}

static int64_t cmos_date(void) {
  struct tm tm = {.tm_sec = bcd(cmos(0)),
                  .tm_min = bcd(cmos(2)),
                  .tm_hour = bcd(cmos(4)),
                  .tm_mday = bcd(cmos(7)),
                  .tm_mon = bcd(cmos(8)) - 1,
                  .tm_year = bcd(cmos(9)) + bcd(cmos(0x32)) * 100 - 1900};
  return timegm(&tm);
}

static void rtc_tells_the_date(void **state) {
  assert_int_equal(rtc_create(vmm, 512ull << 20, 2), 0);
  int64_t difference = cmos_date() - time(NULL);
  assert_true(difference >= -2 && difference <= 2);
  assert_int_equal(cmos(0x0d), 0x80);
  assert_int_equal(cmos(0x34) | cmos(0x35) << 8, (496 << 20) / 65536);
}

static void rtc_takes_a_date(void **state) {
  static const struct {
    uint8_t index, value;
  } date[] = {{0, 0x56}, {2, 0x34}, {4, 0x12}, {7, 0x29}, {8, 0x02}, {9, 0x04}, {0x32, 0x20}};
  assert_int_equal(rtc_create(vmm, 512ull << 20, 1), 0);
  set_cmos(0x0b, 0x82);
  for (size_t i = 0; i < sizeof(date) / sizeof(date[0]); i++) set_cmos(date[i].index, date[i].value);
  set_cmos(0x0b, 0x02);
  int64_t difference = cmos_date() - 1078058096; /* 2004-02-29 12:34:56 UTC */
  assert_true(difference >= 0 && difference <= 2);
  set_cmos(0x0b, 0x06); /* binary */
  assert_int_equal(cmos(7), 29);
  set_cmos(0x0b, 0x00); /* 12 hours */
  set_cmos(4, 0x91);    /* 11 p.m. */
  set_cmos(0x0b, 0x02);
  assert_int_equal(cmos(4), 0x23);
}

static void rtc_periodic_interrupt(void **state) {
  assert_int_equal(rtc_create(vmm, 512ull << 20, 1), 0);
  set_cmos(0x0a, 0x26); /* 1024 Hz */
  set_cmos(0x0b, 0x42);
  fake_loop(vmm, 20);
  assert_true(fake_line(8));
  assert_int_equal(cmos(0x0c) & 0xc0, 0xc0);
  assert_false(fake_line(8));
  assert_int_equal(cmos(0x0c) & 0x40, 0);
}

static void rtc_update_interrupt(void **state) {
  assert_int_equal(rtc_create(vmm, 512ull << 20, 1), 0);
  set_cmos(0x0b, 0x12);
  fake_loop(vmm, 1100);
  assert_true(fake_line(8));
  assert_int_equal(cmos(0x0c) & 0x90, 0x90);
  fake_reset(vmm);
  assert_false(fake_line(8));
  assert_int_equal(cmos(0x0b), 2);
}

static void rtc_alarm(void **state) {
  assert_int_equal(rtc_create(vmm, 512ull << 20, 1), 0);
  set_cmos(1, 0xff);
  set_cmos(3, 0xff);
  set_cmos(5, 0xff); /* matches every second */
  set_cmos(0x0b, 0x22);
  fake_loop(vmm, 1100);
  assert_true(fake_line(8));
  assert_int_equal(cmos(0x0c) & 0xa0, 0xa0);
}

static void i8042_answers_and_resets(void **state) {
  assert_int_equal(i8042_create(vmm), 0);
  fake_out(vmm, 0x64, 0xaa, 1);
  assert_int_equal(fake_in(vmm, 0x64, 1) & 1, 1);
  assert_int_equal(fake_in(vmm, 0x60, 1), 0x55);
  assert_int_equal(fake_in(vmm, 0x64, 1) & 1, 0);
  fake_out(vmm, 0x64, 0x60, 1);
  fake_out(vmm, 0x60, 0x65, 1);
  fake_out(vmm, 0x64, 0x20, 1);
  assert_true(fake_line(1));
  assert_int_equal(fake_in(vmm, 0x60, 1), 0x65);
  assert_false(fake_line(1));
  fake_out(vmm, 0x60, 0xf2, 1); /* to the keyboard that is not there */
  assert_int_equal(fake_in(vmm, 0x64, 1) & 0x41, 0x41);
  assert_int_equal(fake_end_code(vmm), -1);
  fake_out(vmm, 0x64, 0xfe, 1);
  assert_int_equal(fake_end_code(vmm), VMM_END_RESET);
}

static void acpi_power_off(void **state) {
  assert_int_equal(acpi_pm_create(vmm), 0);
  assert_int_equal(fake_in(vmm, ACPI_PM1_CNT, 2) & 1, 1);
  uint32_t t0 = fake_in(vmm, ACPI_PM_TMR, 4);
  usleep(10000);
  assert_in_range(fake_in(vmm, ACPI_PM_TMR, 4) - t0, 35795, 3579545);
  fake_out(vmm, ACPI_PM1_CNT, 1 << 13 | 3 << 10, 2); /* another sleep state */
  assert_int_equal(fake_end_code(vmm), -1);
  fake_out(vmm, ACPI_PM1_CNT, 1 << 13 | ACPI_SLP_TYP_S5 << 10, 2);
  assert_int_equal(fake_end_code(vmm), VMM_END_POWEROFF);
}

static void reset_register(void **state) {
  assert_int_equal(acpi_pm_create(vmm), 0);
  fake_out(vmm, ACPI_RESET_PORT, ACPI_RESET_VALUE, 1);
  assert_int_equal(fake_end_code(vmm), VMM_END_RESET);
}

static void debug_exit_code(void **state) {
  assert_int_equal(debug_exit_create(vmm), 0);
  fake_out(vmm, 0xf4, 0x10, 4);
  assert_int_equal(fake_end_code(vmm), 32 + ((0x10 << 1 | 1) & 0x5f));
}

static void panic_port(void **state) {
  assert_int_equal(pvpanic_create(vmm), 0);
  assert_int_equal(fake_in(vmm, PVPANIC_PORT, 1), 3);
  fake_out(vmm, PVPANIC_PORT, 2, 1); /* the crash kernel takes over: not an end */
  assert_int_equal(fake_end_code(vmm), -1);
  fake_out(vmm, PVPANIC_PORT, 1, 1);
  assert_int_equal(fake_end_code(vmm), VMM_END_PANIC);
}

static void unclaimed_ports_read_ones(void **state) {
  assert_int_equal(fake_in(vmm, 0x1234, 4), 0xffffffff);
}

/* ---- buses ---- */

static void note_read(void *dev, uint64_t addr, void *data, unsigned len) {
  memset(data, (int)addr + *(int *)dev, len);
}
static void note_write(void *dev, uint64_t addr, const void *data, unsigned len) {}
static const struct vmm_range_ops note = {note_read, note_write};

static void bus_refuses_overlap(void **state) {
  struct bus bus = {0};
  int dev = 0;
  assert_int_equal(bus_add(&bus, 100, 10, &note, &dev), 0);
  assert_int_equal(bus_add(&bus, 110, 10, &note, &dev), 0);
  assert_int_equal(bus_add(&bus, 90, 10, &note, &dev), 0);
  assert_int_equal(bus_add(&bus, 95, 10, &note, &dev), -EEXIST);
  assert_int_equal(bus_add(&bus, 119, 1, &note, &dev), -EEXIST);
  assert_int_equal(bus_add(&bus, 0, 1000, &note, &dev), -EEXIST);
  assert_int_equal(bus_add(&bus, UINT64_MAX, 2, &note, &dev), -EINVAL);
  assert_null(bus_find(&bus, 98, 4)); /* not across two ranges */
  assert_non_null(bus_find(&bus, 96, 4));
  assert_null(bus_find(&bus, 120, 1));
  assert_int_equal(bus_del(&bus, 100), 0);
  assert_int_equal(bus_del(&bus, 100), -ENOENT);
  assert_null(bus_find(&bus, 100, 1));
  assert_non_null(bus_find(&bus, 110, 1));
  bus_free(&bus);
}

static void byte_port_inside_a_range(void **state) {
  int wide = 0x10, byte = 0x77;
  assert_int_equal(vmm_pio_add(vmm, 0xcf8, 4, &note, &wide), 0);
  assert_int_equal(vmm_pio_add(vmm, 0xcf9, 1, &note, &byte), 0);
  assert_int_equal(fake_in(vmm, 0xcf8, 4), 0x10101010);
  assert_int_equal(fake_in(vmm, 0xcf9, 1), 0x77);
  assert_int_equal(fake_in(vmm, 0xcf8, 1), 0x10);
  assert_int_equal(vmm_pio_del(vmm, 0xcf9), 0);
  assert_int_equal(fake_in(vmm, 0xcf9, 1), 0x11);
}

/* ---- event loop ---- */

static int fired[4];
static unsigned fired_count;

static void on_timer(void *opaque) {
  fired[fired_count++] = *(int *)opaque;
}

static uint64_t now_ns(void) {
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void timers_fire_in_order(void **state) {
  static int ids[] = {0, 1, 2};
  struct vmm_timer *t[3];
  fired_count = 0;
  for (int i = 0; i < 3; i++) t[i] = vmm_timer_create(vmm_event_loop(vmm), on_timer, &ids[i]);
  uint64_t now = now_ns();
  vmm_timer_arm(t[0], now + 9000000);
  vmm_timer_arm(t[1], now + 3000000);
  vmm_timer_arm(t[2], now + 6000000);
  vmm_timer_cancel(t[2]);
  vmm_timer_arm(t[0], now + 1000000); /* again, earlier */
  fake_loop(vmm, 30);
  assert_int_equal(fired_count, 2);
  assert_int_equal(fired[0], 0);
  assert_int_equal(fired[1], 1);
  for (int i = 0; i < 3; i++) vmm_timer_destroy(t[i]);
}

static unsigned fd_calls;

/* Of two descriptors that are ready at once, the first to be called removes the other. */
static void on_ready(void *opaque, int fd, uint32_t events) {
  int *pair = opaque;
  fd_calls++;
  vmm_loop_del(vmm_event_loop(vmm), fd == pair[0] ? pair[1] : pair[0]);
  vmm_loop_del(vmm_event_loop(vmm), fd);
}

static void removed_descriptor_is_not_called(void **state) {
  int a[2], b[2];
  assert_int_equal(pipe(a), 0);
  assert_int_equal(pipe(b), 0);
  int pair[2] = {a[0], b[0]};
  fd_calls = 0;
  assert_int_equal(write(a[1], "x", 1) + write(b[1], "x", 1), 2);
  assert_int_equal(vmm_loop_add(vmm_event_loop(vmm), a[0], EPOLLIN, on_ready, pair), 0);
  assert_int_equal(vmm_loop_add(vmm_event_loop(vmm), b[0], EPOLLIN, on_ready, pair), 0);
  fake_loop(vmm, 10);
  assert_int_equal(fd_calls, 1);
  assert_int_equal(vmm_loop_del(vmm_event_loop(vmm), a[0]), -ENOENT);
  for (int i = 0; i < 2; i++) close(a[i]), close(b[i]);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
  const struct CMUnitTest tests[] = {
      TEST(uart_writes_characters),
      TEST(uart_transmit_interrupt),
      TEST(uart_loopback),
      TEST(uart_registers),
      TEST(rtc_tells_the_date),
      TEST(rtc_takes_a_date),
      TEST(rtc_periodic_interrupt),
      TEST(rtc_update_interrupt),
      TEST(rtc_alarm),
      TEST(i8042_answers_and_resets),
      TEST(acpi_power_off),
      TEST(reset_register),
      TEST(debug_exit_code),
      TEST(panic_port),
      TEST(unclaimed_ports_read_ones),
      TEST(bus_refuses_overlap),
      TEST(byte_port_inside_a_range),
      TEST(timers_fire_in_order),
      TEST(removed_descriptor_is_not_called),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

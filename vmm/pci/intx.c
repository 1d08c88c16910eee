/* INTx: level-triggered lines that the functions of a bus share.
 *
 * PCI Local Bus 3.0, sections 2.2.6 and 6.2.2 (Interrupt Disable), 6.2.3 (Interrupt Status).
 * Lock: host->intx_lock is a leaf that covers the level and the call that passes it on, so that levels cannot overtake.
 */
#include "vmm/pci/pci_priv.h"

#include <linux/pci_regs.h>

#include "vmm/vmm.h"

/* MSI-X in use keeps the function from INTx (6.8.2). */
static bool drives_line(struct pci_dev *dev) {
  return dev->intx_asserted && dev->config[PCI_INTERRUPT_PIN] && !dev->intx_disabled && !msix_enabled(dev);
}

static void update_locked(struct pci_dev *dev) {
  struct pci_host *host = dev->host;
  unsigned gsi = pci_intx_gsi(dev->slot, 0);
  uint32_t *users = &host->gsi_users[gsi - PCI_INTX_GSI_FIRST];
  uint32_t before = *users, mine = 1u << dev->slot;
  *users = drives_line(dev) ? before | mine : before & ~mine;
  if (!before != !*users) vmm_irq_set(host->vmm, gsi, *users != 0);
}

void pci_intx_update(struct pci_dev *dev) {
  pthread_mutex_lock(&dev->host->intx_lock);
  dev->intx_disabled = pci_get16(dev->config + PCI_COMMAND) & PCI_COMMAND_INTX_DISABLE;
  update_locked(dev);
  pthread_mutex_unlock(&dev->host->intx_lock);
}

/* Interrupt Status shows the device's wish, whether or not it drives the line. */
void pci_intx_refresh_status(struct pci_dev *dev) {
  pthread_mutex_lock(&dev->host->intx_lock);
  dev->config[PCI_STATUS] = (dev->config[PCI_STATUS] & ~PCI_STATUS_INTERRUPT) | (dev->intx_asserted ? PCI_STATUS_INTERRUPT : 0);
  pthread_mutex_unlock(&dev->host->intx_lock);
}

void pci_intx_set(struct pci_dev *dev, bool level) {
  pthread_mutex_lock(&dev->host->intx_lock);
  if (dev->intx_asserted != level) {
    dev->intx_asserted = level;
    update_locked(dev);
  }
  pthread_mutex_unlock(&dev->host->intx_lock);
}

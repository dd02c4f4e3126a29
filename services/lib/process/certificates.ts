/** When the certificates of this process end, as a metric: whoever is to renew them is told in time. */
import { X509Certificate } from 'node:crypto';
import { keyName } from './config.ts';
import { metrics } from './metrics.ts';

/** @param pems by the setting that names the file, such as `rpcCert`; of a chain, the first certificate counts. */
export function noteCertificates(pems: Readonly<Record<string, Buffer>>): void {
  for (const [setting, pem] of Object.entries(pems)) {
    const seconds = Date.parse(new X509Certificate(pem).validTo) / 1000;
    metrics.certificateNotAfter.set({ setting: keyName(setting) }, seconds);
  }
}

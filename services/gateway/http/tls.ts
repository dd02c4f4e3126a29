/** The certificate with which the gateway serves HTTPS. */
import { createSecureContext } from 'node:tls';
import { describeValid, noteCertificates, type RenewedTls, type Tls } from '../../lib/process/certificate.ts';
import { ServingError } from '../../lib/process/errors.ts';
import { readSettingFile, reasonOf } from '../../lib/process/os-errors.ts';
import type { HttpConfig } from './settings.ts';

/**
 * Reads the certificate and its key, of which both files or none are given.
 * @throws ServingError config_invalid
 */
export async function loadTls(config: Pick<HttpConfig, 'tlsCert' | 'tlsKey'>): Promise<Tls | undefined> {
  const tls = await readTls(config);
  if (tls) noteCertificates({ tlsCert: tls.cert });
  return tls;
}

async function readTls({ tlsCert, tlsKey }: Pick<HttpConfig, 'tlsCert' | 'tlsKey'>): Promise<Tls | undefined> {
  if (tlsCert === '' && tlsKey === '') return undefined;
  const [cert, key] = await Promise.all([readPem('--tls-cert', tlsCert), readPem('--tls-key', tlsKey)]);
  try {
    createSecureContext({ cert, key });
  } catch (cause) {
    const message = `--tls-cert ${tlsCert}, --tls-key ${tlsKey}: ${reasonOf(cause)}`;
    throw new ServingError('config_invalid', message, { cause });
  }
  return { cert, key };
}

/**
 * Reads a newer certificate and has it served.
 * @returns what the log says of it.
 * @throws ServingError config_invalid; the one before is served on.
 */
export async function renewTls(served: RenewedTls, config: Pick<HttpConfig, 'tlsCert' | 'tlsKey'>): Promise<object> {
  const tls = await readTls(config);
  if (tls === undefined) throw new ServingError('config_invalid', '--tls-cert and --tls-key name no files');
  const described = describeValid(`--tls-cert ${config.tlsCert}`, tls.cert);
  served.renew(tls);
  noteCertificates({ tlsCert: tls.cert });
  return described;
}

async function readPem(flag: string, path: string): Promise<Buffer> {
  if (path === '') throw new ServingError('config_invalid', `${flag} is missing: TLS needs a certificate and its key`);
  return readSettingFile(flag, path);
}

/** The certificate with which the gateway serves HTTPS. */
import { createSecureContext } from 'node:tls';
import { noteCertificates } from '../../lib/process/certificates.ts';
import { ServingError } from '../../lib/process/errors.ts';
import { readSettingFile, reasonOf } from '../../lib/process/os-errors.ts';
import type { HttpConfig } from './settings.ts';

/** The gateway's certificate and its private key, in PEM. */
export interface Tls {
  readonly cert: Buffer;
  readonly key: Buffer;
}

/**
 * Reads the certificate and its key, of which both files or none are given.
 * @throws ServingError config_invalid
 */
export async function loadTls({ tlsCert, tlsKey }: Pick<HttpConfig, 'tlsCert' | 'tlsKey'>): Promise<Tls | undefined> {
  if (tlsCert === '' && tlsKey === '') return undefined;
  const [cert, key] = await Promise.all([readPem('--tls-cert', tlsCert), readPem('--tls-key', tlsKey)]);
  try {
    createSecureContext({ cert, key });
  } catch (cause) {
    const message = `--tls-cert ${tlsCert}, --tls-key ${tlsKey}: ${reasonOf(cause)}`;
    throw new ServingError('config_invalid', message, { cause });
  }
  noteCertificates({ tlsCert: cert });
  return { cert, key };
}

async function readPem(flag: string, path: string): Promise<Buffer> {
  if (path === '') throw new ServingError('config_invalid', `${flag} is missing: TLS needs a certificate and its key`);
  return readSettingFile(flag, path);
}

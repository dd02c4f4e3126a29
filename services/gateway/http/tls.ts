/** The certificate with which the gateway serves HTTPS, and how a newer one takes its place. */
import { createSecureContext, type Server } from 'node:tls';
import { describeValid } from '../../lib/process/certificate.ts';
import { ServingError } from '../../lib/process/errors.ts';
import { readSettingFile, reasonOf } from '../../lib/process/os-errors.ts';
import type { HttpConfig } from './settings.ts';

/** The gateway's certificate and its private key, in PEM. */
export interface Tls {
  readonly cert: Buffer;
  readonly key: Buffer;
}

/**
 * A certificate that may be renewed while it is served: connections that are open go on, and new ones get the new one.
 */
export class RenewedTls implements Tls {
  #pem: Tls;
  readonly #servers = new Set<Pick<Server, 'setSecureContext'>>();

  constructor(pem: Tls) {
    this.#pem = pem;
  }

  get cert(): Buffer {
    return this.#pem.cert;
  }

  get key(): Buffer {
    return this.#pem.key;
  }

  /** The server gets every certificate that comes. */
  followedBy(server: Server): void {
    this.#servers.add(server);
    server.once('close', () => this.#servers.delete(server));
  }

  renew(pem: Tls): void {
    this.#pem = pem;
    for (const server of this.#servers) server.setSecureContext(pem);
  }
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
  return { cert, key };
}

/**
 * Reads a newer certificate and has it served.
 * @returns what the log says of it.
 * @throws ServingError config_invalid; the one before is served on.
 */
export async function renewTls(served: RenewedTls, config: Pick<HttpConfig, 'tlsCert' | 'tlsKey'>): Promise<object> {
  const tls = await loadTls(config);
  if (tls === undefined) throw new ServingError('config_invalid', '--tls-cert and --tls-key name no files');
  const described = describeValid(`--tls-cert ${config.tlsCert}`, tls.cert);
  served.renew(tls);
  return described;
}

async function readPem(flag: string, path: string): Promise<Buffer> {
  if (path === '') throw new ServingError('config_invalid', `${flag} is missing: TLS needs a certificate and its key`);
  return readSettingFile(flag, path);
}

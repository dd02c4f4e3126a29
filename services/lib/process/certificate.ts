/**
 * The certificates of a process: one that takes the place of another one while the process serves, what is checked of
 * it, and when those in use end, as a metric, so that whoever is to renew them is told in time.
 */
import { X509Certificate } from 'node:crypto';
import type { Server } from 'node:tls';
import { keyName } from './config.ts';
import { ServingError } from './errors.ts';
import { metrics } from './metrics.ts';
import { reasonOf } from './os-errors.ts';

/** What the log says of a certificate: enough to tell it from the one before. */
interface Described {
  readonly serial: string;
  readonly valid_from: string;
  readonly valid_to: string;
}

/**
 * Describes the first certificate of a file, which must be valid now: whoever connects would refuse any other, while
 * the one before may still be good.
 * @param named the setting and its path, with which the message begins.
 * @param host a name that the certificate must be for; any when not given.
 * @throws ServingError config_invalid
 */
export function describeValid(named: string, pem: Buffer, host?: string): Described {
  const refuse = (why: string, cause?: unknown) => new ServingError('config_invalid', `${named}: ${why}`, { cause });
  let certificate: X509Certificate;
  try {
    certificate = new X509Certificate(pem);
  } catch (cause) {
    throw refuse(reasonOf(cause), cause);
  }
  const { validFrom, validTo, serialNumber } = certificate;
  const nowMs = Date.now();
  if (nowMs < Date.parse(validFrom)) throw refuse(`it is not valid before ${validFrom}`);
  if (nowMs > Date.parse(validTo)) throw refuse(`it was valid until ${validTo}`);
  if (host !== undefined && certificate.checkHost(host) === undefined) throw refuse(`it is not for the name ${host}`);
  return { serial: serialNumber, valid_from: validFrom, valid_to: validTo };
}

/** A certificate and its private key, in PEM. */
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
 * Tells when certificates in use end.
 * @param pems by the setting that names the file, such as `rpcCert`; of a chain, the first certificate counts.
 */
export function noteCertificates(pems: Readonly<Record<string, Buffer>>): void {
  for (const [setting, pem] of Object.entries(pems)) {
    const seconds = Date.parse(new X509Certificate(pem).validTo) / 1000;
    metrics.certificateNotAfter.set({ setting: keyName(setting) }, seconds);
  }
}

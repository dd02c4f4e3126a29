/** What is checked of a certificate that takes the place of another one while a process serves. */
import { X509Certificate } from 'node:crypto';
import { ServingError } from './errors.ts';
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

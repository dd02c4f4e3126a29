/**
 * The secret that all services of one system share. It is never sent: a service proves that it knows it by keyed hashes
 * (HMAC-SHA256) over what it says. It is read once, so that a new secret takes effect at the next start.
 */
import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import { open, rm, writeFile } from 'node:fs/promises';
import { flagName } from './config.ts';
import { ServingError } from './errors.ts';

/** What a hash is for: a hash that was made for one purpose proves nothing for another. */
type Purpose = 'caller of a connection' | 'server of a connection' | 'KV handle' | 'registry entry';
type Field = string | number;

/** `openssl rand -hex 32` writes 64 characters; with 32 characters of hex there are 128 bits to guess. */
const FEWEST_CHARACTERS = 32;
/** What users may do with a file who neither own it nor are in its group. */
const FOR_ALL = 0o007;
/** Bytes of a hash. */
export const SEAL_BYTES = 32;

export class SystemSecret {
  readonly #key: Buffer;

  /** @param text random, at least 32 characters. */
  constructor(text: string) {
    this.#key = Buffer.from(text);
  }

  seal(purpose: Purpose, ...fields: readonly Field[]): Buffer {
    // JSON keeps fields apart: no two lists have the same text.
    return createHmac('sha256', this.#key)
      .update(JSON.stringify([purpose, ...fields]))
      .digest();
  }

  /** Compares in constant time. */
  isSealed(seal: Uint8Array, purpose: Purpose, ...fields: readonly Field[]): boolean {
    return seal.length === SEAL_BYTES && timingSafeEqual(seal, this.seal(purpose, ...fields));
  }
}

/**
 * @param file '' for no secret.
 * @throws ServingError config_invalid; its message names the file and never what is in it.
 */
export async function loadSystemSecret(file: string): Promise<SystemSecret | undefined> {
  if (file === '') return undefined;
  const named = `${flagName('rpcSecretFile')} ${file}`;
  const { text, mode } = await read(file).catch((cause: Error) => {
    throw new ServingError('config_invalid', `${named}: ${cause.message}`, { cause });
  });
  // Its group may read it: that is how Kubernetes gives a secret to a user that is not root (fsGroup).
  if ((mode & FOR_ALL) !== 0) {
    throw new ServingError(
      'config_invalid',
      `${named} has mode ${(mode & 0o777).toString(8)}: every user of the machine can use it; chmod 600 ${file}`,
    );
  }
  const secret = text.trim();
  if (secret.length >= FEWEST_CHARACTERS) return new SystemSecret(secret);
  throw new ServingError(
    'config_invalid',
    `${named} holds ${secret.length} characters, at least ${FEWEST_CHARACTERS} random ones are needed: openssl rand -hex 32`,
  );
}

/** The mode is that of the file that is read, even if another one takes its name meanwhile. */
async function read(file: string): Promise<{ text: string; mode: number }> {
  const handle = await open(file);
  try {
    const { mode } = await handle.stat();
    return { text: await handle.readFile('utf8'), mode };
  } finally {
    await handle.close();
  }
}

/** Writes a new secret of 256 bits that only this user can read; what was there before is removed, even a link. */
export async function writeSystemSecret(file: string): Promise<void> {
  await rm(file, { force: true });
  await writeFile(file, `${randomBytes(32).toString('hex')}\n`, { mode: 0o600, flag: 'wx' });
}

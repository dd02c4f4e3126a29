/**
 * Signatures of a bundle, for sites that take models over a border: whoever holds the private key says that the
 * manifest is theirs, and the manifest has the digest of every file.
 *
 *     DIR/manifest.sig    one line per key: the key's id, and 64 bytes of Ed25519 in hex
 *
 * Signed are {@link CONTEXT} and the bytes of `manifest.json` as they are, so that nothing is parsed before it is
 * trusted. A key's id is the first 16 hex digits of the SHA-256 of its public key (SPKI, DER). Keys are PEM files:
 * `openssl genpkey -algorithm ed25519 -out key.pem`, `openssl pkey -in key.pem -pubout -out public.pem`.
 */
import { createHash, createPrivateKey, createPublicKey, type KeyObject, sign, verify } from 'node:crypto';
import { readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ServingError } from '../../process/errors.ts';
import { readSettingFile, reasonOf } from '../../process/os-errors.ts';

const SIGNATURES = 'manifest.sig';
/** What is signed begins with it, so that a signature made for another purpose is none. */
const CONTEXT = Buffer.from('llavacode bundle manifest 1\n');
const LINE = /^(?<id>[0-9a-f]{16}) (?<signature>[0-9a-f]{128})$/;

/** Where a public key was read from, and its id. */
export interface Signer {
  readonly id: string;
  readonly key: KeyObject;
  /** The setting and path of the key, for messages. */
  readonly named: string;
}

const idOf = (key: KeyObject) =>
  createHash('sha256')
    .update(key.export({ type: 'spki', format: 'der' }))
    .digest('hex')
    .slice(0, 16);

const signed = (manifest: Uint8Array) => Buffer.concat([CONTEXT, manifest]);

/**
 * The public key of a PEM file.
 * @param flag the setting that names it.
 * @throws ServingError config_invalid
 */
export async function readSigner(flag: string, path: string): Promise<Signer> {
  const key = keyIn(await readSettingFile(flag, path), `${flag} ${path}`, createPublicKey);
  return { id: idOf(key), key, named: `${flag} ${path}` };
}

/** @throws ServingError config_invalid for what is not an Ed25519 key. */
function keyIn(pem: Buffer, named: string, read: (pem: Buffer) => KeyObject): KeyObject {
  let key: KeyObject;
  try {
    key = read(pem);
  } catch (cause) {
    throw new ServingError('config_invalid', `${named}: it is not a key in PEM (${reasonOf(cause)})`, { cause });
  }
  if (key.asymmetricKeyType === 'ed25519') return key;
  throw new ServingError('config_invalid', `${named}: it is a key for ${key.asymmetricKeyType}, and must be Ed25519`);
}

/**
 * Signs the manifest of a bundle, whose files must have been verified. Signatures of other keys stay; one that this key
 * made before is replaced.
 * @param keyPath PEM file of the private key.
 * @returns the id of the key.
 * @throws ServingError config_invalid for the key, path_unusable where the signature cannot be written.
 */
export async function signManifest(dir: string, manifest: Uint8Array, keyPath: string): Promise<string> {
  const key = keyIn(await readSettingFile('--key', keyPath), `--key ${keyPath}`, createPrivateKey);
  const id = idOf(createPublicKey(key));
  const others = (await linesOf(dir)).filter((line) => !line.startsWith(`${id} `));
  const line = `${id} ${sign(null, signed(manifest), key).toString('hex')}`;
  const path = join(dir, SIGNATURES);
  await writeFile(`${path}.new`, `${[...others, line].join('\n')}\n`);
  await rename(`${path}.new`, path);
  return id;
}

/** @throws ServingError bundle_invalid unless the signer has signed these bytes. */
export async function assertSigned(dir: string, manifest: Uint8Array, { id, key, named }: Signer): Promise<void> {
  const refuse = (why: string) => new ServingError('bundle_invalid', `${dir}: ${why} (${named} has the id ${id})`);
  const lines = await linesOf(dir);
  if (lines.length === 0) throw refuse(`it is not signed: there is no ${SIGNATURES}`);
  const found = lines.map((line) => LINE.exec(line)?.groups).find((groups) => groups?.['id'] === id);
  if (found === undefined) throw refuse(`${SIGNATURES} has no signature of the key`);
  if (!verify(null, signed(manifest), key, Buffer.from(found['signature']!, 'hex'))) {
    throw refuse('manifest.json is not what was signed');
  }
}

/** None where there is no file of signatures. */
async function linesOf(dir: string): Promise<string[]> {
  const text = await readFile(join(dir, SIGNATURES), 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return '';
    throw new ServingError('bundle_invalid', `${dir}: ${SIGNATURES} cannot be read: ${reasonOf(error)}`, {
      cause: error,
    });
  });
  return text.split('\n').filter((line) => line !== '');
}

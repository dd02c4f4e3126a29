/** Signed bundles: what is signed, who is believed, and every way to tamper with one. */
import { generateKeyPairSync } from 'node:crypto';
import { cp, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { runBundleVerify } from '../../../services/export.ts';
import { openBundle } from '../../../services/lib/model/bundle/bundle.ts';
import { exportBundle } from '../../../services/lib/model/bundle/export-bundle.ts';
import { GOLDENS, temporaryFolder } from '../../support/models.ts';

const parent = await temporaryFolder();
const original = join(parent, 'original');
await exportBundle({ llm: join(GOLDENS, 'qwen2-tied'), to: original, precision: 'fp32' });

/** PEM files of a pair of keys. */
async function keyPair(name: string, type: 'ed25519' | 'ed448' = 'ed25519') {
  const { privateKey, publicKey } = type === 'ed25519' ? generateKeyPairSync('ed25519') : generateKeyPairSync('ed448');
  const [key, pub] = [join(parent, `${name}.key`), join(parent, `${name}.pub`)];
  await writeFile(key, privateKey.export({ type: 'pkcs8', format: 'pem' }));
  await writeFile(pub, publicKey.export({ type: 'spki', format: 'pem' }));
  return { key, pub };
}
const [ours, others, wrongKind] = [await keyPair('ours'), await keyPair('others'), await keyPair('wrong', 'ed448')];

let copies = 0;
async function signedCopy(key = ours.key): Promise<string> {
  const dir = join(parent, `copy-${copies++}`);
  await cp(original, dir, { recursive: true });
  await runBundleVerify(dir, { signWith: key });
  return dir;
}
const open = (dir: string, { pub } = ours) => openBundle(dir, { requireSigned: pub });
const refused = (code: string, ...parts: string[]) =>
  expect.objectContaining({ code, message: expect.stringMatching(new RegExp(parts.join('.*'))) });

test('a signed bundle is opened and verified by the key’s owner’s public key, and without one', async () => {
  const dir = await signedCopy();
  expect((await open(dir)).manifest.fingerprint).toBe((await openBundle(original)).manifest.fingerprint);
  const { signedBy } = await runBundleVerify(dir, { publicKey: ours.pub });
  expect(signedBy).toMatch(/^[0-9a-f]{16}$/);
  expect(await openBundle(dir)).toBeDefined();
  expect(await runBundleVerify(dir)).not.toHaveProperty('signedBy');
});

test('a bundle that nobody has signed, or another key has, is refused where a signature is required', async () => {
  await expect(open(original)).rejects.toThrow(refused('bundle_invalid', 'is not signed', 'manifest.sig', 'ours.pub'));
  const dir = await signedCopy(others.key);
  await expect(open(dir)).rejects.toThrow(refused('bundle_invalid', 'no signature of the key', '--require-signed'));
  await expect(runBundleVerify(dir, { publicKey: ours.pub })).rejects.toThrow(
    refused('bundle_invalid', 'no signature', '--public-key'),
  );
});

test('a bundle may be signed by several keys, and anew by the same', async () => {
  const dir = await signedCopy();
  await runBundleVerify(dir, { signWith: others.key });
  await runBundleVerify(dir, { signWith: ours.key });
  for (const by of [ours, others]) expect(await open(dir, by)).toBeDefined();
  expect((await readFile(join(dir, 'manifest.sig'), 'utf8')).trimEnd().split('\n')).toHaveLength(2);
});

describe('tampering', () => {
  test('any change of the manifest, or of the signature, is found before the manifest is read', async () => {
    const dir = await signedCopy();
    for (const name of ['manifest.json', 'manifest.sig']) {
      const path = join(dir, name);
      const bytes = await readFile(path);
      await fc.assert(
        fc.asyncProperty(fc.nat(bytes.length - 2), fc.integer({ min: 1, max: 127 }), async (at, mask) => {
          const changed = Buffer.from(bytes);
          changed[at]! ^= mask;
          await writeFile(path, changed);
          await expect(open(dir)).rejects.toThrow(refused('bundle_invalid', 'signed|signature'));
        }),
        { numRuns: 100 },
      );
      await writeFile(path, bytes);
    }
    expect(await open(dir)).toBeDefined();
  });

  test('a manifest that was formatted anew is not what was signed', async () => {
    const dir = await signedCopy();
    const path = join(dir, 'manifest.json');
    await writeFile(path, JSON.stringify(JSON.parse(await readFile(path, 'utf8'))));
    await expect(open(dir)).rejects.toThrow(refused('bundle_invalid', 'manifest.json is not what was signed'));
  });

  test('a file that was changed is found by its digest, and such a bundle is not signed', async () => {
    const dir = await signedCopy();
    const path = join(dir, 'llm/model.bin');
    const bytes = await readFile(path);
    bytes[100]! ^= 1;
    await writeFile(path, bytes);
    await rm(join(dir, 'manifest.sig'));
    await expect(runBundleVerify(dir, { signWith: ours.key })).rejects.toThrow(
      refused('bundle_invalid', 'llm/model.bin is damaged'),
    );
    await expect(readFile(join(dir, 'manifest.sig'))).rejects.toThrow('ENOENT');
  });

  test('a tokenizer’s configuration that the manifest does not have is refused: it would be read', async () => {
    const dir = await signedCopy();
    await writeFile(join(dir, 'tokenizer_config.json'), '{"chat_template": "{{ messages }}"}');
    await expect(open(dir)).rejects.toThrow(refused('bundle_invalid', 'tokenizer_config.json is not in the manifest'));
    await expect(runBundleVerify(dir)).rejects.toThrow(refused('bundle_invalid', 'is not in the manifest'));
  });

  test('a signature of another bundle does not fit', async () => {
    const [dir, other] = [await signedCopy(), await signedCopy()];
    const path = join(other, 'manifest.json');
    const manifest = JSON.parse(await readFile(path, 'utf8')) as object;
    await writeFile(path, JSON.stringify({ ...manifest, name: 'other' }));
    await runBundleVerify(other, { signWith: ours.key });
    await cp(join(other, 'manifest.sig'), join(dir, 'manifest.sig'));
    await expect(open(dir)).rejects.toThrow(refused('bundle_invalid', 'not what was signed'));
  });
});

test('keys that cannot be read or are of another kind are named with their setting', async () => {
  const dir = await signedCopy();
  const missing = { key: '', pub: '/no/such.pem' };
  await expect(open(dir, missing)).rejects.toThrow(refused('config_invalid', '--require-signed /no/such.pem'));
  await expect(open(dir, wrongKind)).rejects.toThrow(refused('config_invalid', 'ed448', 'must be Ed25519'));
  await expect(open(dir, { ...ours, pub: join(dir, 'manifest.json') })).rejects.toThrow(
    refused('config_invalid', 'not a key in PEM'),
  );
  await expect(runBundleVerify(dir, { signWith: wrongKind.key })).rejects.toThrow(
    refused('config_invalid', '--key', 'must be Ed25519'),
  );
  await expect(runBundleVerify(dir, { signWith: ours.pub })).rejects.toThrow(refused('config_invalid', '--key'));
});

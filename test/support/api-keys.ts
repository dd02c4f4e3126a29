/** A file of API keys, and what a request needs to send one of them. */
import { createHash } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';
import { type FileKeys, loadApiKeys } from '../../services/gateway/tenants/api-keys.ts';

export const sha256 = (text: string) => createHash('sha256').update(text).digest('hex');

/** An entry of the file: the key may use all repositories of its tenant, unless `fields` says otherwise. */
export const keyEntry = (key: string, tenant: string, fields: object = {}) => ({
  key_sha256: sha256(key),
  tenant,
  repos: ['*'],
  ...fields,
});

/**
 * Writes the file, which is gone when the test ends, and loads it.
 * @param nowMs the time of day, where the test sets it.
 */
export async function keysOf(entries: readonly object[], nowMs?: () => number): Promise<FileKeys> {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-keys-'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  const file = join(dir, 'keys.json');
  await writeFile(file, JSON.stringify(entries));
  return loadApiKeys(file, nowMs);
}

export const bearer = (key: string) => ({ authorization: `Bearer ${key}` });

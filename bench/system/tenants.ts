/** Tenants of a system under test: their API keys, and the file by which a gateway knows them. */
import { createHash, randomBytes } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DEFAULT_TENANT } from '../../services/lib/rag/store/repo-key.ts';

/** Where requests go, and the key that they carry; undefined where the gateway asks for none. */
export interface Door {
  readonly url: string;
  readonly apiKey?: string | undefined;
}

export interface Tenant {
  readonly name: string;
  readonly apiKey: string;
  /** When the key ends, as the file of keys spells it; never if not given. */
  readonly expires?: string;
  /** The limits of the tenant, as the file of keys spells them; none if not given. */
  readonly limits?: { readonly max_inflight?: number; readonly tokens_per_minute?: number };
}

/** A tenant with a new key. */
export const tenant = (name: string, limits?: Tenant['limits']): Tenant => ({
  name,
  apiKey: randomBytes(16).toString('hex'),
  ...(limits && { limits }),
});

/** The tenant to whom the repositories belong that are indexed without one, so that its prompts have their context. */
export const owner = () => tenant(DEFAULT_TENANT);

/** Writes the file for `--api-keys-file`. Every tenant may use all of its repositories. @returns the file's path. */
export async function writeKeys(dir: string, tenants: readonly Tenant[], name = 'api-keys.json'): Promise<string> {
  const file = join(dir, name);
  const entries = tenants.map(({ name, apiKey, limits, expires }) => ({
    key_sha256: createHash('sha256').update(apiKey).digest('hex'),
    tenant: name,
    repos: ['*'],
    ...(expires !== undefined && { expires }),
    ...limits,
  }));
  await writeFile(file, JSON.stringify(entries), { mode: 0o600 });
  return file;
}

/**
 * How services prove to each other who they are: mutual TLS under an authority of their own. Workers are found by
 * addresses that change, so a certificate is for one name, {@link SERVICE_NAME}, wherever its service runs.
 */
import { readFile } from 'node:fs/promises';
import { createSecureContext } from 'node:tls';
import { type ChannelCredentials, type ChannelOptions, credentials, ServerCredentials } from '@grpc/grpc-js';
import { type ConfigOf, flagName } from '../process/config.ts';
import { ServingError } from '../process/errors.ts';
import { assertGuarded, type Exposure } from '../process/exposure.ts';
import type { RPC_SETTINGS } from './settings.ts';

const RPC_FILES = ['rpcCert', 'rpcKey', 'rpcCa'] as const;
type RpcFiles = ConfigOf<typeof RPC_SETTINGS>;

/** The DNS name that every service's certificate carries. */
export const SERVICE_NAME = 'llavacode';

export interface RpcSecurity {
  readonly channel: ChannelCredentials;
  readonly channelOptions: ChannelOptions;
  readonly server: ServerCredentials;
  /** Whether callers must prove who they are. */
  readonly mutual: boolean;
}

/** Nobody proves anything. */
export const PLAINTEXT: RpcSecurity = {
  channel: credentials.createInsecure(),
  channelOptions: {},
  server: ServerCredentials.createInsecure(),
  mutual: false,
};

/**
 * All three files or none. They are read once: a new certificate is taken at the next start.
 * @throws ServingError config_invalid, naming the file at fault.
 */
export async function loadRpcSecurity(files: RpcFiles): Promise<RpcSecurity> {
  const missing = RPC_FILES.filter((setting) => files[setting] === '');
  if (missing.length === RPC_FILES.length) return PLAINTEXT;
  if (missing.length > 0) {
    throw new ServingError('config_invalid', `mutual TLS needs ${missing.map(flagName).join(' and ')} too`);
  }
  const [cert, key, ca] = await Promise.all(RPC_FILES.map((setting) => readPem(setting, files[setting])));
  try {
    createSecureContext({ cert, key, ca });
  } catch (cause) {
    const names = RPC_FILES.map((setting) => files[setting]).join(', ');
    throw new ServingError('config_invalid', `${names}: ${(cause as Error).message}`, { cause });
  }
  return {
    channel: credentials.createSsl(ca!, key!, cert!),
    channelOptions: { 'grpc.ssl_target_name_override': SERVICE_NAME },
    server: ServerCredentials.createSsl(ca!, [{ cert_chain: cert!, private_key: key! }], true),
    mutual: true,
  };
}

/**
 * What a worker or an indexer listens with.
 * @throws ServingError config_invalid: bad files, or an address that others reach while nobody has to prove anything.
 */
export async function loadServingSecurity(config: RpcFiles & Exposure): Promise<RpcSecurity> {
  const security = await loadRpcSecurity(config);
  assertGuarded(config, security.mutual, '--rpc-cert, --rpc-key and --rpc-ca');
  return security;
}

async function readPem(setting: (typeof RPC_FILES)[number], file: string): Promise<Buffer> {
  try {
    return await readFile(file);
  } catch (cause) {
    throw new ServingError('config_invalid', `${flagName(setting)} ${file}: ${(cause as Error).message}`, { cause });
  }
}

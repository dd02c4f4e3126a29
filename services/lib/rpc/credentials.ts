/**
 * How services prove their identity to each other: mutual TLS under a private authority. The addresses of workers
 * change, so every certificate is issued for one name, {@link SERVICE_NAME}, wherever its service runs.
 */
import { readFile } from 'node:fs/promises';
import { createSecureContext } from 'node:tls';
import { type ChannelCredentials, type ChannelOptions, credentials, ServerCredentials } from '@grpc/grpc-js';
import { type ConfigOf, flagName } from '../process/config.ts';
import { ServingError } from '../process/errors.ts';
import { assertGuarded, type Exposure } from '../process/exposure.ts';
import { reasonOf } from '../process/os-errors.ts';
import type { RPC_SETTINGS } from './settings.ts';

const RPC_FILES = ['rpcCert', 'rpcKey', 'rpcCa'] as const;
type RpcFiles = ConfigOf<typeof RPC_SETTINGS>;

/** The DNS name that every service's certificate carries. */
export const SERVICE_NAME = 'llavacode';

export interface RpcSecurity {
  readonly channel: ChannelCredentials;
  readonly channelOptions: ChannelOptions;
  readonly server: ServerCredentials;
  /** Whether callers must prove their identity. */
  readonly mutual: boolean;
}

/** No encryption, and no proof of identity. */
export const PLAINTEXT: RpcSecurity = {
  channel: credentials.createInsecure(),
  channelOptions: {},
  server: ServerCredentials.createInsecure(),
  mutual: false,
};

/**
 * Needs all three files or none. They are read once, so a new certificate takes effect at the next start.
 * @throws ServingError config_invalid, naming the file at fault.
 */
export async function loadRpcSecurity(files: RpcFiles): Promise<RpcSecurity> {
  const missing = RPC_FILES.filter((setting) => files[setting] === '');
  if (missing.length === RPC_FILES.length) return PLAINTEXT;
  if (missing.length > 0) {
    throw new ServingError('config_invalid', `mutual TLS also needs ${missing.map(flagName).join(' and ')}`);
  }
  const [cert, key, ca] = await Promise.all(RPC_FILES.map((setting) => readPem(setting, files[setting])));
  try {
    createSecureContext({ cert, key, ca });
  } catch (cause) {
    const names = RPC_FILES.map((setting) => files[setting]).join(', ');
    throw new ServingError('config_invalid', `${names}: ${reasonOf(cause)}`, { cause });
  }
  return {
    channel: credentials.createSsl(ca!, key!, cert!),
    channelOptions: { 'grpc.ssl_target_name_override': SERVICE_NAME },
    server: ServerCredentials.createSsl(ca!, [{ cert_chain: cert!, private_key: key! }], true),
    mutual: true,
  };
}

/**
 * The security of a server: a worker or an indexer.
 * @throws ServingError config_invalid for bad files, or for an address that other machines reach without mutual TLS.
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
    throw new ServingError('config_invalid', `${flagName(setting)} ${file}: ${reasonOf(cause)}`, { cause });
  }
}

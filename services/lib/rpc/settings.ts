/** How services prove to each other that they belong to one system: by certificates, or by a secret that all know. */
import { file } from '../process/setting-types.ts';

export const RPC_SETTINGS = {
  rpcCert: file.describe('PEM file of the certificate, for the name llavacode, that this service shows to the others'),
  rpcKey: file.describe('PEM file of the private key of --rpc-cert'),
  rpcCa: file.describe('PEM file of the private authority that signs these certificates and nothing else'),
  rpcSecretFile: file.describe(
    'file of the secret that all services of this system share, random and at least 32 characters long (openssl ' +
      'rand -hex 32), not open to all users of the machine (mode 0600, or 0440 with a group of its own); it proves ' +
      'connections where no certificates do, and signs KV handles and the entries of a registry',
  ),
};

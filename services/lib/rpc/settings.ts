/** The certificates by which services prove to each other who they are. */
import { file } from '../process/setting-types.ts';

export const RPC_SETTINGS = {
  rpcCert: file.describe('PEM file of the certificate, for the name llavacode, that this service shows to the others'),
  rpcKey: file.describe('PEM file of the private key of --rpc-cert'),
  rpcCa: file.describe('PEM file of the private authority that signs these certificates and nothing else'),
};

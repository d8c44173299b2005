import blockchain_tcp.v1.BlockchainTcp.AddRequest;
import blockchain_tcp.v1.BlockchainTcp.NthPrimesRequest;
import blockchain_tcp.v1.BlockchainTcp.Request;
import blockchain_tcp.v1.BlockchainTcp.Response;
import java.io.BufferedOutputStream;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.Socket;
import java.util.List;
import java.util.stream.Collectors;

/** Asks blockchain-tcpd over protobuf: java Protobuf HOST PORT. README.md, beside this file, says how to run it. */
public class Protobuf {
    public static void main(String[] arguments) throws Exception {
        try (Socket socket = new Socket(arguments[0], Integer.parseInt(arguments[1]))) {
            socket.setSoTimeout(10_000);
            OutputStream output = new BufferedOutputStream(socket.getOutputStream());
            InputStream input = socket.getInputStream();
            // Requests may be sent at once; the responses come in their order.
            add(1, 2, 5).writeDelimitedTo(output);
            NthPrimesRequest places = NthPrimesRequest.newBuilder().addAllN(List.of(9999L, 1234L, 1L)).build();
            Request.newBuilder().setId(2).setNthPrimes(places).build().writeDelimitedTo(output);
            add(3, Long.MAX_VALUE, 1).writeDelimitedTo(output);
            output.flush();
            System.out.println("add 2 5: " + receive(input).getAdd().getValue());
            List<Long> primes = receive(input).getNthPrimes().getValuesList();
            String shown = primes.stream().map(String::valueOf).collect(Collectors.joining(" "));
            System.out.println("primes 9999 1234 1: " + shown);
            System.out.println("add " + Long.MAX_VALUE + " 1: " + receive(input).getError().getMessage());
        }
    }

    private static Request add(long id, long x, long y) {
        return Request.newBuilder().setId(id).setAdd(AddRequest.newBuilder().setX(x).setY(y)).build();
    }

    private static Response receive(InputStream input) throws Exception {
        Response response = Response.parseDelimitedFrom(input);
        if (response == null) {
            throw new java.io.EOFException("the server closed the connection");
        }
        return response;
    }
}
